"""Sets of a comparison judged with other encoders than they were distilled with."""

from __future__ import annotations

from typing import Any

from ..catalogue.protocols import bound_of
from . import readings

__all__ = ["transfers"]

Rows = list[dict[str, Any]]


def transfers(rows: Rows) -> list[dict[str, Any]]:
    """A table for every dataset, number of images per class and protocol where some set was judged elsewhere.

    Returns:
        Mappings of ``dataset``, ``ipc``, ``encoders`` (that judge) and ``kinds``: for each protocol ``protocol``,
        ``views`` and ``groups``, a method's ``name`` and ``lines``: the encoder that distilled, and a cell for each of
        ``encoders``, with ``top1`` (``readings.End`` or ``None``), ``share`` of what all training images reach there in
        percent (or ``None``) and ``own``, whether it is the encoder that distilled.
    """
    elsewhere = {row["dataset"] for row in rows if _judge(row) != row["encoder"]}
    ends = [row for row in rows if row["last"] and not row["group"] and row["dataset"] in elsewhere]
    keys = dict.fromkeys((row["dataset"], row["ipc"]) for row in ends if row["ipc"] is not None)
    return [_table(dataset, ipc, [row for row in ends if row["dataset"] == dataset]) for dataset, ipc in keys]


def _judge(row: dict[str, Any]) -> str:
    """The encoder that judged; older tables know one alone."""
    return str(row["eval_encoder"] or row["encoder"])


def _table(dataset: str, ipc: int, rows: Rows) -> dict[str, Any]:
    encoders = list(dict.fromkeys([row["encoder"] for row in rows] + [_judge(row) for row in rows]))
    full = [row for row in rows if row["method"] == "full"]
    bounds = {
        (judge, protocol): next(iter(found.values())).mean
        for judge in encoders
        for protocol in {row["protocol"] for row in full}
        if (found := _top1([r for r in full if (_judge(r), r["protocol"]) == (judge, protocol)]))
    }
    own = [row for row in rows if row["ipc"] == ipc]
    kinds = [
        {"protocol": protocol, "views": views, "groups": _groups(protocol, views, own, encoders, bounds)}
        for protocol, views in dict.fromkeys((row["protocol"], row["views"]) for row in own)
    ]
    return {"dataset": dataset, "ipc": ipc, "encoders": encoders, "kinds": kinds}


def _groups(
    protocol: str, views: str, rows: Rows, encoders: list[str], bounds: dict[tuple[str, str], float]
) -> list[dict[str, Any]]:
    rows = [row for row in rows if (row["protocol"], row["views"]) == (protocol, views)]
    groups = []
    for name in dict.fromkeys(row["name"] for row in rows):
        lines = []
        for distilled in dict.fromkeys(row["encoder"] for row in rows if row["name"] == name):
            cells = []
            for judge in encoders:
                top1 = _top1([r for r in rows if (r["name"], r["encoder"], _judge(r)) == (name, distilled, judge)])
                end, bound = top1.get(name), bounds.get((judge, bound_of(protocol)))
                share = 100 * end.mean / bound if end is not None and bound else None
                cells.append({"top1": end, "share": share, "own": judge == distilled})
            lines.append({"encoder": distilled, "cells": cells})
        groups.append({"name": name, "lines": lines})
    return groups


def _top1(rows: Rows) -> dict[str, readings.End]:
    return readings.ends(rows, lambda row: row["top1"])
