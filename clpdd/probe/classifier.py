"""The hand-over: a ready linear classifier trained on a distilled set alone, and its use on images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..config.evaluate import EvaluateSettings
from ..datasets.decode import SUFFIXES, Undecodable, decode
from ..datasets.listing import max_file_bytes, read_file
from ..datasets.walking import files_below, is_folder, looks_like_image
from ..distilled.dataset import DistilledSet
from ..encoders.calling import encode
from ..encoders.encoder import Encoder
from ..errors import ArtifactError, DataError, SettingsError
from ..storage.files import canonical_json, write_bytes
from .calibration import fit_temperature
from .closed_form import fit_ridge
from .sgd import fit_sgd
from .views import Stream, ViewBank, encode_clean, encode_views

__all__ = ["Classifier", "Prediction", "classify_files", "find_images", "train_classifier"]

FORMAT = 1
_CALIBRATION_VIEWS = 20  # of each image


@dataclass(frozen=True, eq=False)
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


def train_classifier(
    data: DistilledSet,
    encoder: Encoder,
    settings: EvaluateSettings | None = None,
    *,
    protocol: str = "sgd",
    seed: int = 0,
) -> Classifier:
    """Train a linear classifier on a distilled set and nothing else.

    Its probabilities are calibrated on further views of the same images (``fit_temperature``): without that they are
    near ``1/C`` even where it is right, since ridge regression fits no probabilities and Adam stops long before them.

    Args:
        data: the set; of a method with several draws the first one is used.
        encoder: any frozen encoder, also another than the set was distilled with.
        settings: all but ``protocols``, ``seeds`` and ``random_draws`` are used.
        protocol: ``"sgd"`` or ``"closed_form"``, as in evaluation. The latter centres by the mean feature of the
            real images, which the set keeps for the encoder it was distilled with; with another one by the mean of the
            set's own views.

    Raises:
        DataError: the set holds no images (method ``full``).
        SettingsError: an unknown protocol.
    """
    settings = settings or EvaluateSettings()
    if not len(data):
        raise DataError(f"the set made by {data.name} holds no images, so nothing can be trained on it")
    encoder.require_square("training a classifier on a distilled set")
    chosen, stream = data.draws[0], Stream(seed, 0)
    views = max(1, settings.views)

    def view(which: range) -> Tensor:
        """Numbered views ``(1, V, n, d)``, or the images as they are where nothing is augmented."""
        if not settings.augment.active:
            return encode_clean(encoder, chosen.images[None], settings.encoder_batch, settings.precision)[:, None]
        batch, precision = settings.encoder_batch, settings.precision
        return encode_views(encoder, [chosen.images], [stream], which, settings.augment, batch, precision)

    bank = view(range(views))
    labels = chosen.targets[None]
    if protocol == "sgd":
        probes = fit_sgd(
            ViewBank(bank, [stream]),
            labels,
            data.classes,
            [stream],
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
        )
    elif protocol == "closed_form":
        Z = bank.flatten(1, 2)
        targets = torch.cat([labels] * bank.shape[1], dim=1)
        mean = _centre(data, encoder, Z[0])
        probes = fit_ridge(Z, targets, data.classes, mean, settings.ridge, encoder.parts)
    else:
        raise SettingsError(f"protocol is {protocol!r}; it must be sgd or closed_form")
    used = settings.model_dump(mode="json", include={"views", "augment", "epochs", "learning_rate", "ridge"})
    info = {"dataset": data.info.get("dataset"), "method": data.name, "images": len(chosen), "protocol": protocol}
    weight, bias = probes.weights[0].T.cpu(), probes.bias[0].cpu()
    further = view(range(views, views + min(views, _CALIBRATION_VIEWS)))[0].float().cpu()  # (V, n, d)
    logits = torch.nn.functional.linear(further.flatten(0, 1), weight, bias)
    temperature = fit_temperature(logits, torch.cat([chosen.targets.cpu()] * len(further)))
    info |= {"temperature": temperature, "settings": used | {"seed": seed}}
    return Classifier(weight / temperature, bias / temperature, data.class_names, encoder.describe(), info)


def _centre(data: DistilledSet, encoder: Encoder, Z: Tensor) -> Tensor:
    """The mean real feature ``(d,)`` where the set has it for this encoder, else that of its own features ``Z``."""
    made_with, mean = data.info.get("encoder", {}), data.info.get("feature_mean")
    if mean is None or any(made_with.get(key) != value for key, value in encoder.describe().items() if key != "name"):
        return Z.float().mean(0)
    return torch.tensor(mean, dtype=torch.float32)


# -- use ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """What one file shows: the likeliest classes first, with probabilities, or why it could not be read."""

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Image files: those named, and of folders those below them (by suffix), sorted.

    Folders are walked as for an index (``clpdd.datasets.walking``): hidden files and clutter are passed over, links
    followed.

    Raises ``DataError`` for a path that does not exist, or when nothing is found.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = (entry for entry, _ in files_below(path) if looks_like_image(entry.name) and not is_folder(entry))
            found += sorted(Path(entry.path) for entry in below)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path} does not exist")
    if not found:
        raise DataError(f"no image in {', '.join(map(str, paths))}: files are found by suffix ({', '.join(SUFFIXES)})")
    return found


@torch.no_grad()
def classify_files(
    classifier: Classifier,
    encoder: Encoder,
    files: Sequence[Path],
    *,
    top: int = 1,
    batch: int = 64,
    max_pixels: int = 50_000_000,
) -> Iterator[Prediction]:
    """The ``top`` likeliest classes of every file, in order; a file that cannot be read does not stop the others.

    Args:
        top: at least 1; at most as many classes as there are come back.
        batch: files read and encoded at once.
        max_pixels: see ``decode_image``.

    Raises:
        ArtifactError: the encoder is not the classifier's.
        SettingsError: ``top`` is below 1.
    """
    classifier.check(encoder)
    if top < 1:
        raise SettingsError(f"top is {top}; it must be at least 1")
    for first in range(0, len(files), batch):
        part = files[first : first + batch]
        pixels: list[Tensor] = []
        problems: dict[int, str] = {}
        for i, path in enumerate(part):
            try:
                data = read_file(path, max_file_bytes(max_pixels))
                pixels.append(encoder.transform(decode(data, max_pixels)))
            except Undecodable as problem:
                problems[i] = f"{path}: the image {problem}"
        likely: list[tuple[list[int], list[float]]] = []
        if pixels:
            scores = classifier(encode(encoder, torch.stack(pixels), batch))
            found = scores.topk(min(top, len(classifier.class_names)), 1)
            likely = list(zip(found.indices.tolist(), found.values.tolist(), strict=True))[::-1]
        for i, path in enumerate(part):
            if i in problems:
                yield Prediction(path, problem=problems[i])
            else:
                labels, values = likely.pop()
                yield Prediction(path, tuple(classifier.class_names[c] for c in labels), tuple(values))
