"""A linear classifier over the features of one frozen encoder, as a file that is handed over."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import ArtifactError
from ..storage.files import canonical_json, write_bytes

if TYPE_CHECKING:
    from ..encoders.encoder import Encoder

__all__ = ["Classifier"]

FORMAT = 1


@dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A linear classifier over the features of one frozen encoder.

    Attributes:
        weight: ``(C, d)`` float32, as ``torch.nn.Linear`` holds it.
        bias: ``(C,)`` float32.
        class_names: ``C`` names.
        encoder: ``Encoder.describe()`` of the encoder it belongs to.
        info: how it was trained, JSON values.
    """

    weight: Tensor
    bias: Tensor
    class_names: list[str]
    encoder: dict[str, Any]
    info: dict[str, Any] = field(default_factory=dict)

    def __call__(self, features: Tensor) -> Tensor:
        """Class probabilities ``(b, C)`` of features ``(b, d)``."""
        return torch.nn.functional.linear(features, self.weight.to(features), self.bias.to(features)).softmax(1)

    def __repr__(self) -> str:
        trained = f"{self.info.get('images', '?')} images of {self.info.get('method', '?')}"
        how = self.info.get("protocol", "?")
        return f"Classifier({len(self.class_names)} classes over {self.encoder.get('name')}: {how} on {trained})"

    def save(self, path: Path | str) -> None:
        """Write a safetensors file with ``weight``, ``bias`` and the rest as metadata, whole or not at all."""
        facts = {"format": FORMAT, "class_names": self.class_names, "encoder": self.encoder, "info": self.info}
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        write_bytes(path, save(tensors, metadata={"clpdd": canonical_json(facts)}))

    @classmethod
    def load(cls, path: Path | str) -> Classifier:
        """Read a saved classifier. Raises ``ArtifactError`` when the file is missing, damaged or something else."""
        path = Path(path)
        if not path.is_file():
            wrong = "is no file" if path.exists() else "does not exist"
            raise ArtifactError(f"{path} {wrong}: train a classifier with `clpdd probe`")
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                facts = json.loads((file.metadata() or {})["clpdd"])
            tensors = load_file(path)
            weight, bias = tensors["weight"], tensors["bias"]
            names, encoder, info = facts["class_names"], facts["encoder"], facts["info"]
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise ArtifactError(f"{path} is not a classifier made by `clpdd probe` ({error})") from error
        if facts.get("format") != FORMAT or weight.shape != (len(names), encoder["dim"]) or len(bias) != len(names):
            raise ArtifactError(f"{path} is of another format, or its parts do not fit together: train it again")
        return cls(weight, bias, names, encoder, info)

    def check(self, encoder: Encoder) -> None:
        """Raise ``ArtifactError`` unless ``encoder`` gives the features that this classifier was trained on."""
        own, given = self.encoder, encoder.describe()
        changed = [key for key in given if key != "name" and own.get(key) != given[key]]
        if changed:
            raise ArtifactError(
                f"the classifier was trained on features of {own.get('name')}, and {encoder.name} differs from it in "
                f"{', '.join(changed)}: name the same model, weights and image size"
            )
