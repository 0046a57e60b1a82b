"""The page of a comparison and of ablations, drawn from their tables alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalogue.protocols import bound_of
from ..errors import ArtifactError
from ..report.figures import matrix
from ..report.page import template
from ..storage.files import write_bytes
from . import readings
from .drawing import panel
from .due import owed, own_seconds, whole_seconds
from .few_shot import few_shot
from .readings import End
from .table import LATER, SCHEMA
from .transfer import transfers

__all__ = ["read_comparison", "write_comparison"]

Rows = list[dict[str, Any]]
_GRID = "temperature_ridge"


def read_comparison(path: Path | str) -> Rows:
    """Rows of a table of ``clpdd benchmark`` or ``clpdd ablate``; null in columns that an older one lacks.

    Raises ``ArtifactError``.
    """
    try:
        table = pq.read_table(path, memory_map=False)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: make it with clpdd benchmark or clpdd ablate") from error
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is not a table that can be read ({error})") from error
    absent = [name for name in SCHEMA.names if name not in (*table.column_names, *LATER)]
    if absent or not table.num_rows:
        raise ArtifactError(f"{path} is no table of a comparison: {f'it lacks {absent[0]}' if absent else 'no rows'}")
    return [dict.fromkeys(LATER) | row for row in table.to_pylist()]


def write_comparison(tables: Sequence[Path], out: Path) -> Path:
    """Draw tables, of whatever datasets and encoders, as one self-contained page. Raises ``ArtifactError``."""
    everything = [row for path in tables for row in read_comparison(path)]
    rows = [row for row in everything if row["eval_encoder"] in (None, row["encoder"])]
    races = [_race(key, own) for key, own in _split([r for r in rows if not r["group"]], "dataset", "encoder").items()]
    varied = [_varied(key, own) for key, own in _split([r for r in rows if r["group"]], "dataset", "encoder").items()]
    told = {"facts": readings.facts(rows), "skipped": readings.skipped(rows), "transfers": transfers(everything)}
    page = template("comparison.html.j2").render(races=races, varied=varied, **told)
    write_bytes(out, page.encode())
    return out


def _split(rows: Rows, *columns: str) -> dict[tuple[Any, ...], Rows]:
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


# -- races -------------------------------------------------------------------------------------------------------------


def _race(key: tuple[Any, ...], rows: Rows) -> dict[str, Any]:
    everything = [row for row in rows if row["ipc"] is None]
    sizes = [_size(ipc, own + everything) for (ipc,), own in _split(rows, "ipc").items() if ipc is not None]
    return {"dataset": key[0], "encoder": key[1], "sizes": sizes, "few_shot": few_shot(rows)}


def _size(ipc: int, rows: Rows) -> dict[str, Any]:
    named = _split(rows, "name")
    moving = list(dict.fromkeys(row["name"] for row in rows if row["step"] is not None))
    colours = {name: i for i, name in enumerate(moving)}
    judged = [
        _judged(protocol, views, own, rows, colours)
        for (protocol, views), own in _split(rows, "protocol", "views").items()
        if any(row["step"] is not None for row in own)
    ]
    last = {key: readings.ends(rows, lambda row, key=key: row[key]) for key in _COSTS}  # type: ignore[misc]  # mypy types no lambda with a default
    own, whole = readings.ends(rows, own_seconds), readings.ends(rows, whole_seconds)
    unknown = {name: list(dict.fromkeys(word for row in mine for word in owed(row))) for (name,), mine in named.items()}
    bounds = {(j["protocol"], j["views"]): j["ends"] for j in judged}
    lines = [
        {"name": name, "colour": colours.get(name)}
        | {key: last[key].get(name) for key in _COSTS}
        | {"top1": [ends.get(name) for ends in bounds.values()]}
        | {"own": own.get(name), "whole": whole.get(name), "unknown": unknown[name]}
        for (name,) in named
    ]
    return {"ipc": ipc, "judged": judged, "lines": lines, "bars": _memory(last)}


_COSTS = ("step", "seconds", "forward", "backward", "peak_memory_mb", "idle_memory_mb")


def _judged(protocol: str, views: str, own: Rows, rows: Rows, colours: dict[str, int]) -> dict[str, Any]:
    bound = bound_of(protocol)
    full = [row for row in rows if row["method"] == "full" and row["protocol"] == bound]
    own = [row for row in own if row["method"] != "full"] + full
    last = readings.ends(own, lambda row: row["top1"])
    still = {row["name"] for row in own if row["step"] is None}
    levels = {name: value.mean for name, value in last.items() if name in still}
    runs = readings.curves(own)
    by_name = {name: [run for run in runs if run.name == name] for name in colours}
    by_time = {name: readings.mean_by_time(several) for name, several in by_name.items()}
    by_steps = {name: readings.mean_curve([run.by_steps for run in several]) for name, several in by_name.items()}
    panels = [
        panel("Seconds of optimisation", by_time, colours, levels),
        panel("Steps", by_steps, colours, levels),
    ]
    return {
        "protocol": protocol,
        "views": views,
        "ends": last,
        "panels": panels,
        "duels": readings.duels(own),
        "probes": len({row["probe_seed"] for row in own if row["step"] is not None}),
    }


def _memory(last: dict[str, dict[str, End]]) -> list[dict[str, Any]]:
    """Bars of the methods with steps: what the distillation added to its process, in percent of the largest peak."""
    peaks = {name: m.mean for name, m in last["peak_memory_mb"].items() if name in last["seconds"]}
    most = max(peaks.values(), default=1.0)
    return [
        {"name": name, "peak": peak, "idle": (idle := last["idle_memory_mb"][name].mean)}
        | {"width": round(100 * peak / most, 2), "rest": round(100 * min(idle, peak) / most, 2)}
        for name, peak in peaks.items()
    ]


# -- ablations ---------------------------------------------------------------------------------------------------------


def _varied(key: tuple[Any, ...], rows: Rows) -> dict[str, Any]:
    kinds = list(_split(rows, "protocol", "views"))
    groups = [_group(name, own, kinds) for (name,), own in _split(rows, "group").items() if name != _GRID]
    grid = [row for row in rows if row["group"] == _GRID]
    heats = [_heat(kind, own) for kind, own in _split(grid, "protocol", "views").items()]
    first = rows[0]
    return {"dataset": key[0], "encoder": key[1], "groups": groups, "heats": heats, "kinds": kinds} | {
        "ipc": first["ipc"],
        "steps": first["step"],
    }


def _group(name: str, rows: Rows, kinds: list[tuple[Any, ...]]) -> dict[str, Any]:
    lines = []
    for (choice,), own in _split(rows, "choice").items():
        scores = []
        for kind in kinds:
            (score,) = readings.ends(
                [row for row in own if (row["protocol"], row["views"]) == kind], lambda row: row["top1"]
            ).values()
            scores.append(score)
        (seconds,) = readings.ends(own, lambda row: row["seconds"]).values()
        lines.append({"choice": choice, "scores": scores, "seconds": seconds})
    best = [max(line["scores"][i].mean for line in lines) for i in range(len(kinds))]
    return {"name": name.replace("_", " "), "lines": lines, "best": best}


def _heat(kind: tuple[Any, ...], rows: Rows) -> dict[str, Any]:
    cells = {choice: readings.ends(own, lambda row: row["top1"]) for (choice,), own in _split(rows, "choice").items()}
    value = {tuple(c.split(" / ")): next(iter(found.values())).mean for c, found in cells.items()}
    temperatures = list(dict.fromkeys(key[0] for key in value))
    ridges = list(dict.fromkeys(key[1] for key in value))
    table = [[value.get((t, r)) for r in ridges] for t in temperatures]
    return {
        "protocol": kind[0],
        "views": kind[1],
        "temperatures": temperatures,
        "ridges": ridges,
        "cells": matrix(table, min(value.values()), max(value.values())),
    }
