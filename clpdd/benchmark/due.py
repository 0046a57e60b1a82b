"""Time that a method owes beside its own: the making of what it reads, by the project's clock readings."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..catalogue.methods import METHODS
from ..config.distill import DistillSettings
from ..errors import ArtifactError
from ..storage.files import read_json
from ..storage.work import item_name

__all__ = ["owed", "own_seconds", "preparation", "whole_seconds"]

_PARTS = {
    "features_seconds": "features",
    "kernels_seconds": "kernels",
    "setup_seconds": "set-up",
    "selection_seconds": "selection",
}


def preparation(clocks: Path, encoder: str, method: str, settings: DistillSettings) -> dict[str, float | None]:
    """``features_seconds``, of the training and validation split, and ``kernels_seconds``.

    0 for a method that reads neither; ``None`` where the clock reading is missing, of a stage out of a cache say.

    Args:
        clocks: folder of the clock readings.
        encoder: name of the encoder that is distilled with.
        method: in ``METHODS``.
        settings: it may start from real images that are chosen by their features, or take labels from the full probe.
    """
    chosen_start = METHODS[method].optimises and (
        settings.initialisation in ("centroid", "medoids") or settings.labels == "probe"
    )
    if not (METHODS[method].features or chosen_start):
        return {"features_seconds": 0.0, "kernels_seconds": 0.0}
    splits = [_reading(clocks, "cache", f"{encoder}-{split}") for split in ("train", "validation")]
    known = [seconds for seconds in splits if seconds is not None]
    return {
        "features_seconds": sum(known) if len(known) == len(splits) else None,
        "kernels_seconds": _reading(clocks, "kernels", encoder),
    }


def _reading(clocks: Path, stage: str, item: str) -> float | None:
    file = clocks / f"{stage}-{item_name(item)}.json"
    with contextlib.suppress(ArtifactError, OSError, KeyError, TypeError, ValueError):
        return float(read_json(file)["seconds"])
    return None


def own_seconds(row: dict[str, Any]) -> float | None:
    """Seconds of the steps, or of the selection by a method without any; ``None`` where they were not measured."""
    own: float | None = row["selection_seconds"] if row["step"] is None else row["seconds"]
    return own


def owed(row: dict[str, Any]) -> tuple[str, ...]:
    """What is due and was not measured, in words; empty where ``whole_seconds`` knows everything."""
    left = "setup_seconds" if row["step"] is None else "selection_seconds"
    return tuple(word for name, word in _PARTS.items() if name != left and row[name] is None)


def whole_seconds(row: dict[str, Any]) -> float | None:
    """Seconds of features, kernels, set-up and steps (or selection) of a row; ``None`` where a reading is missing."""
    if owed(row):
        return None
    return sum(row[name] or 0.0 for name in (*_PARTS, "seconds"))
