"""The page of a comparison and of ablations, drawn from their tables alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalogue.protocols import bound_of
from ..errors import ArtifactError
from ..report.figures import Tick, matrix, nice_ticks
from ..report.page import template
from ..storage.files import write_bytes
from . import readings
from .due import owed, own_seconds, whole_seconds
from .readings import End, Mean
from .table import LATER, SCHEMA

__all__ = ["read_comparison", "write_comparison"]

Rows = list[dict[str, Any]]
_GRID = "temperature_ridge"
_NAME = 6.0  # percent of a drawing's height that a name takes


@dataclass(frozen=True)
class Line:
    """A method's curve: SVG path data in a 100 x 100 box, the points on it, and the last value in words."""

    name: str
    colour: int
    line: str
    band: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Level:
    """A method without steps: where its line lies, and where its name is written; percent from the top."""

    name: str
    at: float
    written: float


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes, and levels of what has no steps."""

    title: str
    lines: list[Line]
    levels: list[Level]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


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
    rows = [row for path in tables for row in read_comparison(path)]
    races = [_race(key, own) for key, own in _split([r for r in rows if not r["group"]], "dataset", "encoder").items()]
    varied = [_varied(key, own) for key, own in _split([r for r in rows if r["group"]], "dataset", "encoder").items()]
    told = {"facts": readings.facts(rows), "skipped": readings.skipped(rows)}
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
    return {"dataset": key[0], "encoder": key[1], "sizes": sizes}


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
        _panel("Seconds of optimisation", by_time, colours, levels),
        _panel("Steps", by_steps, colours, levels),
    ]
    return {
        "protocol": protocol,
        "views": views,
        "ends": last,
        "panels": panels,
        "duels": readings.duels(own),
        "probes": len({row["probe_seed"] for row in own if row["step"] is not None}),
    }


def _panel(
    title: str, curves: dict[str, list[tuple[float, Mean]]], colours: dict[str, int], levels: dict[str, float]
) -> Panel:
    """Accuracy over the logarithm of ``title``; what lies at zero has no place on it."""
    drawn = {name: [(x, y) for x, y in points if x > 0] for name, points in curves.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    places = [x for points in drawn.values() for x, _ in points]
    heights = [y.mean + side * (y.std or 0) for points in drawn.values() for _, y in points for side in (-1, 1)]
    heights += levels.values()
    left, right = math.log10(min(places)), math.log10(max(places))
    width = right - left or 1.0
    y_ticks = nice_ticks(max(0.0, min(heights)), min(100.0, max(heights)), count=8)

    def across(x: float) -> float:
        return round(100 * (math.log10(x) - left) / width, 2)

    def down(y: float) -> float:
        return round(100 - 100 * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]), 2)

    lines = []
    for name, points in drawn.items():
        middle = [(across(x), down(y.mean)) for x, y in points]
        upper = [(across(x), down(y.mean + (y.std or 0))) for x, y in points]
        lower = [(across(x), down(y.mean - (y.std or 0))) for x, y in points]
        band = _path(upper + lower[::-1]) + " Z" if any(y.std for _, y in points) else ""
        lines.append(Line(name, colours[name], _path(middle), band, middle if len(middle) <= 40 else []))
    x_ticks = [Tick(across(x), f"{x:,g}") for x in _decades(10**left, 10**right)]
    return Panel(
        title,
        lines,
        _levels({name: down(y) for name, y in levels.items()}),
        x_ticks,
        [Tick(down(y), f"{y:g}") for y in y_ticks],
    )


def _levels(heights: dict[str, float]) -> list[Level]:
    """Levels from the top down, whose names are at least ``_NAME`` apart and within the drawing, if there is room."""
    names = sorted(heights, key=lambda name: heights[name])
    gap = min(_NAME, 100 / max(1, len(names) - 1))
    written: list[float] = []
    for name in names:
        written.append(max(heights[name], written[-1] + gap) if written else heights[name])
    lowest = 100.0
    for k in reversed(range(len(names))):
        written[k] = min(written[k], lowest)
        lowest = written[k] - gap
    return [Level(name, heights[name], round(at, 2)) for name, at in zip(names, written, strict=True)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten within the range; with fewer than three of them, twos and fives as well."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    tens = [x for x in found if math.isclose(10 ** round(math.log10(x)), x)]
    return tens if len(tens) > 2 else found


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)


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
