"""Across encoders: what images that were distilled with one are worth to another, as numbers and as heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ..catalogue.methods import METHODS
from ..catalogue.protocols import PROTOCOLS
from ..config.settings import Settings

__all__ = ["ENCODERS_NAMED", "cross", "heat_maps"]

ENCODERS_NAMED = 4
"""With more encoders than these the columns of a heat map are numbered."""

_SCALE_STEP = 10  # percent: the scale begins at a multiple of it


def cross(summary: list[dict[str, Any]], settings: Settings, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """A matrix for every method whose images depend on the encoder, and every protocol; none of a single encoder.

    Args:
        summary: lines of ``data.summarise``.
        kinds: name of each method -> the method behind it.

    Returns:
        Mappings of ``method``, ``synthetic``, ``protocol``, ``views``, the matrices ``top1`` and ``share_of_full``
        (rows: distilled with, columns: evaluated with; percent or ``None``) and ``mean_share``, of every row over the
        single encoders; for a protocol that the row's own encoder is not judged by, over the others of these.
    """
    encoders = settings.encoders
    if len(encoders) < 2:
        return []
    single = [i for i, e in enumerate(encoders) if len(settings.members(e)) == 1]
    matrices = []
    for method in (name for name in settings.methods if kinds[name] not in ("random", "full")):
        own = [line for line in summary if line["method"] == method]
        for protocol, views in dict.fromkeys((line["protocol"], line["views"]) for line in own):
            cell = {
                (line["distil_encoder"], line["eval_encoder"]): line
                for line in own
                if (line["protocol"], line["views"]) == (protocol, views)
            }
            found = [[cell.get((a, b)) for b in encoders] for a in encoders]
            shares = [[line["share_of_full"] if line else None for line in row] for row in found]
            others = _across(protocol)
            compared = [[j for j in single if not (others and i == j)] for i in range(len(encoders))]
            matrices.append(
                {
                    "method": method,
                    "synthetic": METHODS[kinds[method]].optimises,
                    "protocol": protocol,
                    "views": views,
                    "top1": [[line["top1"]["mean"] if line else None for line in row] for row in found],
                    "share_of_full": shares,
                    "mean_share": [_mean([row[j] for j in js]) for row, js in zip(shares, compared, strict=True)],
                }
            )
    return matrices


def _across(protocol: str) -> bool:
    """Whether a protocol is for encoders other than the one that distilled, and for these alone."""
    entry = PROTOCOLS.get(protocol)
    return entry is not None and entry.across


def _mean(shares: list[float | None]) -> float | None:
    """Of a row that is complete, else ``None``: over some columns alone it could not be compared."""
    known = [share for share in shares if share is not None]
    return round(fmean(known), 6) if known and len(known) == len(shares) else None


def heat_maps(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The heat maps of ``facts["cross"]``: ``None`` where there are none.

    Encoders differ in what they reach at all, so a cell is shaded by its share of what all training images reach with
    the encoder of its column, or, where that was not measured, of the best of the column. One scale serves all maps.

    Returns:
        ``made`` and ``chosen``: maps of synthetic and of real images by method. ``low``: percent at which the scale
        begins; it ends at 100. ``of_full``: whether shares are those of all training images. ``numbered``: whether
        columns are numbered. ``joint``: whether some encoder joins others. ``others``: whether some map is of a
        protocol for encoders other than the row's alone, as each map says of itself.
    """
    if not facts["cross"]:
        return None
    encoders = facts["encoders"]
    of_full = any(v is not None for m in facts["cross"] for row in m["share_of_full"] for v in row)
    shares = [m["share_of_full"] if of_full else _of_best(m, facts["cross"]) for m in facts["cross"]]
    lowest = min((v for matrix in shares for row in matrix for v in row if v is not None), default=0.0)
    low = min(_SCALE_STEP * math.floor(lowest / _SCALE_STEP), 100 - _SCALE_STEP)
    groups: dict[bool, dict[str, list[dict[str, Any]]]] = {True: {}, False: {}}
    for matrix, share in zip(facts["cross"], shares, strict=True):
        rows = [
            {
                "name": encoders[i]["name"],
                "cells": [_cell(matrix["top1"][i][j], share[i][j], low, encoders, i, j) for j in range(len(encoders))],
                "mean": matrix["mean_share"][i],
            }
            for i in range(len(encoders))
        ]
        others = _across(matrix["protocol"])
        panel = {"protocol": matrix["protocol"], "views": matrix["views"], "rows": rows, "others": others}
        groups[matrix["synthetic"]].setdefault(matrix["method"], []).append(panel)
    return {
        "made": groups[True],
        "chosen": groups[False],
        "low": low,
        "of_full": of_full,
        "numbered": len(encoders) > ENCODERS_NAMED,
        "joint": any(encoder["members"] for encoder in encoders),
        "others": any(_across(matrix["protocol"]) for matrix in facts["cross"]),
    }


def _of_best(matrix: dict[str, Any], everything: list[dict[str, Any]]) -> list[list[float | None]]:
    """Percent of the best of each column, over the methods under the same protocol."""
    peers = [m for m in everything if (m["protocol"], m["views"]) == (matrix["protocol"], matrix["views"])]
    best = [
        max((m["top1"][i][j] or 0.0 for m in peers for i in range(len(m["top1"]))), default=0.0)
        for j in range(len(matrix["top1"]))
    ]
    return [
        [100 * v / best[j] if v is not None and best[j] else None for j, v in enumerate(row)] for row in matrix["top1"]
    ]


def _cell(
    value: float | None, share: float | None, low: float, encoders: list[dict[str, Any]], i: int, j: int
) -> dict[str, Any]:
    shade = 0.0 if share is None else 100 * min(1.0, max(0.0, (share - low) / (100 - low)))
    kind = "own" if i == j else "joins" if encoders[j]["name"] in encoders[i]["members"] else ""
    return {"value": value, "share": share, "shade": round(shade), "kind": kind}
