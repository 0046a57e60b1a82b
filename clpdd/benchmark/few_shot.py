"""How many real images per class the sets of a comparison are worth: the few-shot curve with the sets on it."""

from __future__ import annotations

import json
from typing import Any

from ..evaluation.image_counts import worth_on
from . import readings
from .drawing import panel
from .readings import Mean

__all__ = ["few_shot"]

_KIND = ("closed_form", "clean")

_TITLES = {"random": "real images drawn at random", "herding": "real images chosen by herding"}


def few_shot(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the page draws of one dataset and encoder; ``None`` where no few-shot curve was measured.

    Returns:
        ``panel``: the curves of real images, every method with steps as points at its numbers of images per class, and
        all real images as a level. ``curves``: what the real images of each curve are. ``lines``: every method and
        number of images per class with its top-1 and, for each curve, the number of real images that it is worth.
    """
    known = next((row["few_shot"] for row in rows if row["few_shot"]), None)
    ends = [row for row in rows if row["last"] and (row["protocol"], row["views"]) == _KIND]
    if known is None or not ends:
        return None
    told = json.loads(known)
    curves: dict[str, list[tuple[int, float]]] = {
        name: [(int(count), float(top1)) for count, top1 in told[name]] for name in _TITLES if name in told
    }
    counts = sorted({row["ipc"] for row in ends if row["ipc"] is not None})
    sets = {ipc: readings.ends([row for row in ends if row["ipc"] == ipc], lambda row: row["top1"]) for ipc in counts}
    moving = list(dict.fromkeys(row["name"] for row in ends if row["step"] is not None))
    drawn: dict[str, list[tuple[float, Mean]]] = {
        name: [(float(ipc), found[name]) for ipc, found in sets.items() if name in found] for name in moving
    }
    drawn |= {_TITLES[name]: [(float(x), Mean(y, None, 1)) for x, y in curve] for name, curve in curves.items()}
    full = readings.ends([row for row in ends if row["method"] == "full"], lambda row: row["top1"])
    return {
        "panel": panel(
            "Images per class",
            drawn,
            {name: colour for colour, name in enumerate(drawn)},
            {name: value.mean for name, value in full.items()},
        ),
        "curves": [_TITLES[name] for name in curves],
        "lines": [
            {"name": name, "ipc": ipc, "top1": top1, "worth": [worth_on(curve, top1.mean) for curve in curves.values()]}
            for ipc, found in sets.items()
            for name, top1 in found.items()
        ],
    }
