"""Statistics of the real features, as the kernel stage leaves them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import ArtifactError
from ..functional.moments import Moments
from ..storage.files import read_json, seal, sha256_file, write_bytes, write_json

__all__ = ["FORMAT", "Kernels"]

FORMAT = 1

_TENSORS, _RECORD = "moments.safetensors", "kernels.json"
_REMEDY = "delete it and run the kernels stage again"


@dataclass(frozen=True)
class Kernels:
    """What ``compute_kernels`` finds; ``n`` rows, ``d`` features, ``C`` classes.

    Attributes:
        counts: ``(C,)`` int64 rows per class, all >= 1.
        class_means: ``(C, d)`` float32.
        mean: ``(d,)`` float32, over all rows.
        gram: ``(d, d)`` float64, ``Z^T Z`` uncentred.
        cross: ``(d, C)`` float64, ``Z^T Y`` with one-hot ``Y``, uncentred.
        eigenvalues: ``(d,)`` float64 of the covariance (centred, over ``n``), descending, >= 0.
        weights: ``(d, C)`` float32 of the full-data probe at ``ridge``: ``logits = z @ weights + bias``.
        bias: ``(C,)`` float32, ``-mean @ weights``; the probe is fitted on centred features and targets.
        nearest: ``(C, k)`` int64 rows of the training index, nearest to their class mean first; -1 pads classes with
            fewer than ``k`` rows.
        n: rows of the training split.
        scale: root mean square of the centred features, > 0.
        effective_rank: exponential of the spectrum's entropy, in [1, d].
        ridge: the relative ridge of the grid that is best on validation.
        ridge_scores: ``{"ridge": ..., "validation_top1": percent}`` for each ridge of the grid, ascending.
        class_names: names of the classes.
        encoder: ``Encoder.describe()``.
        digests: content digests of the stores ``{"train": ..., "validation": ...}``.
    """

    counts: Tensor
    class_means: Tensor
    mean: Tensor
    gram: Tensor
    cross: Tensor
    eigenvalues: Tensor
    weights: Tensor
    bias: Tensor
    nearest: Tensor
    n: int
    scale: float
    effective_rank: float
    ridge: float
    ridge_scores: list[dict[str, float]]
    class_names: list[str]
    encoder: dict[str, Any]
    digests: dict[str, str]

    @property
    def moments(self) -> Moments:
        """The sums over the training features, and what follows from them, in float64."""
        return Moments(self.counts, self.gram, self.cross)

    def save(self, folder: Path | str) -> None:
        """Write ``moments.safetensors`` and ``kernels.json``; the same kernels give the same bytes."""
        folder = Path(folder)
        tensors, values = self._parts()
        write_bytes(folder / _TENSORS, safetensors.torch.save(tensors))
        record = {"format": FORMAT, "moments": sha256_file(folder / _TENSORS), **values}
        write_json(folder / _RECORD, {**record, "seal": seal(record)})

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a folder written by ``save``. Raises ``ArtifactError`` when it is missing, damaged or foreign."""
        folder = Path(folder)
        record = read_json(folder / _RECORD)
        if not isinstance(record, dict) or "seal" not in record:
            raise ArtifactError(f"{folder / _RECORD} is no record of the kernels stage: {_REMEDY}")
        if record.get("format") != FORMAT:
            raise ArtifactError(f"{folder} has format {record.get('format')!r}, this version reads {FORMAT}: {_REMEDY}")
        if record.pop("seal") != seal(record):
            raise ArtifactError(f"{folder / _RECORD} was altered: {_REMEDY}")
        path = folder / _TENSORS
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist: run the kernels stage")
        if sha256_file(path) != record.pop("moments"):
            raise ArtifactError(f"{path} is damaged or belongs to another run: {_REMEDY}")
        del record["format"]
        try:
            values: dict[str, Any] = {**safetensors.torch.load_file(path), **record}
            return cls(**values)
        except (TypeError, safetensors.SafetensorError) as error:
            raise ArtifactError(f"{folder} does not hold what the kernels stage writes ({error}): {_REMEDY}") from error

    def _parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        everything = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value.contiguous() for name, value in everything.items() if isinstance(value, Tensor)}
        return tensors, {name: value for name, value in everything.items() if name not in tensors}
