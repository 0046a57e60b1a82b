"""The images of the page: the main method's by class, beside real ones, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config.settings import Settings
from ..distilled.reading import StoredSet
from ..storage.layout import Layout
from .data import TITLES
from .pictures import SHEET, fit, sheets, timelapse

__all__ = ["gallery"]

_GALLERY_BYTES = 2_400_000
_OTHERS_BYTES = 800_000
_TIMELAPSE_BYTES = 1_200_000
"""Budgets of base64 text, shared by all encoders; with them a page stays below 6 MB."""

_IMAGES_PER_CLASS = 4
_CLASSES_IN_FULL = 50  # with more of them a single image of each is shown
_BY_THEMSELVES = 1000  # most other classes with a picture file each; more are joined in sheets
_MOST_CLASSES = 20_000  # of the other classes, those on the page


def gallery(
    facts: Mapping[str, Any],
    sets: Mapping[tuple[str, str], StoredSet],
    encoder: str,
    layout: Layout,
    settings: Settings,
) -> dict[str, Any]:
    """The main method's images by class, in rows beside the most central real ones and the start."""
    method, share = facts["headline"]["method"], len(settings.encoders)
    chosen = sets[encoder, method].first_draw
    start = sets[encoder, method].start
    rows = [
        ("Distilled" if facts["headline"]["synthetic"] else TITLES.get(method, method), chosen.images, chosen.labels)
    ]
    central = sets.get((encoder, "centroid"))
    beside = central is not None and len(central) > 0 and method != "centroid"
    if central is not None and beside:
        plural = "s" if settings.distill.most_per_class > 1 else ""
        rows.append((f"Most central real image{plural}", central.images, central.labels))
    same = start is not None and beside and central is not None and np.array_equal(start, central.images)
    if same:
        rows[-1] = (f"{rows[-1][0]}, where it started", *rows[-1][1:])
    elif start is not None:
        rows.append(("Start", start, chosen.labels))
    names, shown = chosen.class_names, range(min(chosen.classes, settings.report.max_classes))
    per_class = _IMAGES_PER_CLASS if len(shown) <= _CLASSES_IN_FULL else 1
    found = [[(i, np.flatnonzero(labels == c)[:per_class]) for i, (_, _, labels) in enumerate(rows)] for c in shown]
    arrays = [rows[i][1][int(k)] for cells in found for i, picks in cells for k in picks]
    pictures = iter(fit(arrays, _GALLERY_BYTES // share))
    classes = [{"name": names[c], "cells": [[next(pictures) for _ in picks] for _, picks in found[c]]} for c in shown]
    step = settings.report.images_per_row
    return {
        "encoder": encoder,
        "rows": [label for label, _, _ in rows],
        "central": beside,
        "started": bool(same),
        "chunks": [classes[i : i + step] for i in range(0, len(classes), step)],
        "columns": min(step, len(classes)),
        "images_per_class": min(per_class, settings.distill.most_per_class),
        **_others(chosen, len(shown), _OTHERS_BYTES // share),
        "side": chosen.images.shape[-1] if len(chosen) else 0,
        "timelapse": timelapse(layout.distilled(encoder, method) / "timelapse.gif", _TIMELAPSE_BYTES // share),
        "folder": f"distilled/{encoder}/{method}/images",
    }


def _others(chosen: StoredSet, first: int, budget: int) -> dict[str, Any]:
    """A small first image of every class beyond those in the gallery.

    Returns:
        ``others``: how many; ``pictures``: ``name`` and ``picture`` of each, or, of very many, ``pages`` with the
        ``names`` on each, the ``numbers`` of the first and last class (from 1) and one ``sheet`` of their images;
        ``left_out``: classes that are not on the page.
    """
    labels, rows = np.unique(chosen.labels, return_index=True)  # the first row of every class that has one
    kept = (labels >= first) & (labels < first + _MOST_CLASSES)
    names = [chosen.class_names[c] for c in labels[kept]]
    images = chosen.images[rows[kept]]
    found = {"others": len(names), "left_out": max(0, chosen.classes - first - _MOST_CLASSES)}
    if len(names) <= _BY_THEMSELVES:
        made = [{"name": name, "picture": p} for name, p in zip(names, fit(list(images), budget), strict=True)]
        return found | {"pictures": made, "pages": []}
    numbers = (labels[kept] + 1).tolist()
    parts = [slice(k, k + SHEET) for k in range(0, len(names), SHEET)]
    pages = [
        {"numbers": (numbers[part][0], numbers[part][-1]), "names": names[part], "sheet": sheet}
        for part, sheet in zip(parts, sheets(images, budget), strict=True)
    ]
    return found | {"pictures": [], "pages": pages}
