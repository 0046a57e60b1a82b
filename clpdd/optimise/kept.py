"""What an optimisation keeps on its way: the best images so far, and contact sheets for the timelapse."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..distilled.dataset import grid, png_bytes
from ..storage.files import sha256_bytes, sha256_file, write_bytes

__all__ = ["Best", "Previews"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Best:
    """The images that are handed over unless better ones come.

    Attributes:
        step: steps that they took.
        score: their top-1 in percent on validation data.
        images: ``(n, 3, s, s)`` uint8 on the CPU: all of them on rank 0, elsewhere those of the rank.
        soft_labels: ``(n, C)`` float32 of all of them, where labels are not hard.
    """

    step: int
    score: float
    images: Tensor
    soft_labels: Tensor | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by the names that they have in a checkpoint."""
        labels = {} if self.soft_labels is None else {"best.labels": self.soft_labels}
        return {"best": self.images, **labels}

    @property
    def values(self) -> list[Any]:
        """What a checkpoint holds of it beside the tensors, as JSON values."""
        return [self.step, self.score]

    @classmethod
    def restored(cls, values: list[Any], tensors: Mapping[str, Tensor]) -> Self:
        """Out of the ``values`` and ``tensors`` of a checkpoint."""
        step, score = values
        return cls(step=step, score=score, images=tensors["best"], soft_labels=tensors.get("best.labels"))


class Previews:
    """Contact sheets of the images on their way, a PNG file for each step that is shown.

    Attributes:
        digests: file name -> SHA-256; goes into checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.digests: dict[str, str] = {}

    def add(self, step: int, pictures: Tensor) -> None:
        """Write the sheet of ``pictures (n, 3, s, s)`` uint8 as they are after ``step`` steps."""
        sheet, name = png_bytes(grid(pictures)), f"{step:09d}.png"
        write_bytes(self.folder / name, sheet)
        self.digests[name] = sha256_bytes(sheet)

    def are_whole(self, digests: Mapping[str, str]) -> bool:
        """Whether the files are there as they were written; a warning names the first that is not."""
        for name, digest in digests.items():
            path = self.folder / name
            if not path.is_file() or sha256_file(path) != digest:
                log.warning("preview %s is missing or was altered: starting again at step 0", path)
                return False
        return True

    def frames(self) -> list[NDArray[np.uint8]]:
        """The sheets ``(h, w, 3)`` in the order of their steps."""
        return [np.asarray(Image.open(self.folder / name).convert("RGB")) for name in sorted(self.digests)]
