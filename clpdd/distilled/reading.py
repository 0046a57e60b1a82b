"""A distilled dataset as its files hold it, in NumPy arrays: for those who look at it and compute nothing.

Knows no torch, whose import takes seconds and several hundred megabytes: ``clpdd report`` starts without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..datasets.decode import decode_image
from ..errors import ArtifactError, DataError
from ..storage.files import read_json

__all__ = ["FORMAT", "Described", "StoredSet", "image_paths", "read_set"]

FORMAT = 1
_MAX_PIXELS = 4096 * 4096


class Described:
    """What a set's class names and record tell, whatever its images are kept in."""

    class_names: list[str]
    info: dict[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return len(self.class_names)

    @property
    def method(self) -> str:
        """Name of the method that made it."""
        return str(self.info.get("method", "unknown"))


@dataclass(frozen=True, eq=False)
class StoredSet(Described):
    """What ``clpdd.distilled.dataset.DistilledSet`` is made of; the names mean the same there.

    Attributes:
        images: ``(n, 3, s, s)`` uint8.
        labels, draw: ``(n,)`` int64.
        start: ``(n, 3, s, s)`` uint8, or ``None``.
        soft_labels: ``(n, C)`` float32, or ``None``.
    """

    images: np.ndarray
    labels: np.ndarray
    draw: np.ndarray
    class_names: list[str]
    info: dict[str, Any]
    start: np.ndarray | None = None
    soft_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def first_draw(self) -> StoredSet:
        """The images of its first independent draw, without their start."""
        if not len(self):
            return self
        rows = self.draw == self.draw.min()
        soft = None if self.soft_labels is None else self.soft_labels[rows]
        images, labels, draw = self.images[rows], self.labels[rows], self.draw[rows]
        return replace(self, images=images, labels=labels, draw=draw, start=None, soft_labels=soft)


def read_set(folder: Path | str) -> StoredSet:
    """Read a set. Raises ``ArtifactError`` naming what is wrong."""
    folder = Path(folder)
    info = _record(folder)
    class_names = info.pop("class_names", [])
    try:
        with pq.ParquetFile(folder / "data.parquet") as file:  # read_table would import pandas
            table = file.read()
        encoded = [value["bytes"] for value in table["image"].to_pylist()]
        images = [_pixels(data, f"{folder}/data.parquet row {row}") for row, data in enumerate(encoded)]
        labels, draw = (np.array(table[name].to_pylist(), dtype=np.int64) for name in ("label", "draw"))
        given = table["soft_label"].to_pylist() if "soft_label" in table.column_names else None
        soft = None if given is None else np.array(given, dtype=np.float32).reshape(len(labels), -1)
        pixels = _stack(images)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder}/data.parquet cannot be read ({error}): distil again") from error
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise ArtifactError(f"{folder}/data.parquet: labels must be in [0, {len(class_names)}): distil again")
    found = StoredSet(pixels, labels, draw, class_names, info, soft_labels=soft)
    start = [folder / "start" / path for path in image_paths(labels.tolist(), draw.tolist(), class_names)]
    if start and all(path.is_file() for path in start):
        found = replace(found, start=_stack([_pixels(path.read_bytes(), str(path)) for path in start]))
    return found


def _record(folder: Path) -> dict[str, Any]:
    """``distilled.json`` without its format."""
    if not (folder / "distilled.json").exists():
        wrong = "is no distilled dataset, it has no distilled.json" if folder.is_dir() else "does not exist"
        raise ArtifactError(f"{folder} {wrong}: run the stage distill, or name a folder that it made")
    info = read_json(folder / "distilled.json")
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise ArtifactError(f"{folder}/distilled.json is not of a distilled dataset of format {FORMAT}: distil again")
    return {key: value for key, value in info.items() if key != "format"}


def image_paths(labels: Sequence[int], draws: Sequence[int], class_names: Sequence[str]) -> list[str]:
    """A path for every image; below ``draw-N`` where there are several draws, which must not get mixed up."""
    seen: dict[tuple[int, int], int] = {}
    paths = []
    width = max(3, len(str(len(class_names) - 1)))
    several = len(set(draws)) > 1
    for draw, label in zip(draws, labels, strict=True):
        number = seen.get((draw, label), 0)
        seen[draw, label] = number + 1
        folder = f"draw-{draw}/" if several else ""
        paths.append(f"{folder}{label:0{width}d}-{_safe(class_names[label])}/{number:03d}.png")
    return paths


def _safe(name: str) -> str:
    """A class name as a folder name that can neither climb out of its folder nor upset a file system."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:40].strip("_") or "class"


def _pixels(data: bytes, where: str) -> np.ndarray:
    try:
        return np.asarray(decode_image(data, _MAX_PIXELS, where))
    except DataError as error:
        raise ArtifactError(f"{error}: distil again") from error


def _stack(images: list[np.ndarray]) -> np.ndarray:
    if not images:
        return np.zeros((0, 3, 1, 1), dtype=np.uint8)
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))
