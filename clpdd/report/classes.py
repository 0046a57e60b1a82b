"""Where a probe is right and where it is wrong: accuracy by class, and the confusion of one probe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.confusion import entries, totals

__all__ = ["LISTED", "confusion", "per_class"]

LISTED = 40
"""Most classes that are listed one by one, whatever the settings say."""

_KEYS = ("method", "distil_encoder", "eval_encoder", "protocol", "views")
_MISTAKES = 10


def per_class(details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Accuracy by class in percent of every probe in ``details.json``; ``None`` for a class without test images."""
    return [
        {key: row[key] for key in _KEYS} | {"per_class": [_rounded(value) for value in row["per_class"]]}
        for row in details["rows"]
    ]


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None


def confusion(
    details: Mapping[str, Any], headline: Mapping[str, Any], names: Sequence[str], limit: int
) -> dict[str, Any] | None:
    """Confusion of the probe of the headline, ``None`` where ``details.json`` does not have it.

    Returns:
        ``rows``: percentages of the images of each of the first ``limit`` classes (``LISTED`` at most) that were taken
        for each of these, and in one more column for any ``others`` when there are more classes; ``mistakes``: the most
        frequent ones of all classes, as ``true``, ``predicted`` and ``share`` of the true class's images in percent.
    """
    wanted = tuple(headline[key] for key in ("method", "encoder", "encoder", "protocol", "views"))
    counts = next((row["confusion"] for row in details["rows"] if tuple(row[key] for key in _KEYS) == wanted), None)
    if counts is None:
        return None
    limit = min(limit, LISTED)
    others = len(names) > limit
    rows = [[0.0] * (min(limit, len(names)) + others) for _ in names[:limit]]
    of = totals(counts, len(names))
    mistakes = []
    for i, j, number in entries(counts):
        share = 100 * number / of[i]
        if i < limit:
            rows[i][min(j, limit)] += share
        if i != j:
            mistakes.append((round(share, 6), i, j))
    mistakes.sort(key=lambda mistake: -mistake[0])
    worst = [{"true": names[i], "predicted": names[j], "share": share} for share, i, j in mistakes[:_MISTAKES]]
    return {"rows": [[round(value, 6) for value in row] for row in rows], "others": others, "mistakes": worst}
