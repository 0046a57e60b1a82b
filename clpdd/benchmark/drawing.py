"""Curves over a logarithmic axis, as SVG path data in percent of the drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..report.figures import Tick, nice_ticks
from .readings import Mean

__all__ = ["Level", "Line", "Panel", "panel"]

_NAME = 6.0  # percent of a drawing's height that a name takes


@dataclass(frozen=True)
class Line:
    """A method's curve: SVG path data in a 100 x 100 box, and the points on it."""

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


def panel(
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
    ends = low * (1 - 1e-9), high * (1 + 1e-9)  # a range that ends at 50 holds 50, whatever a logarithm made of it
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if ends[0] <= m * 10.0**p <= ends[1]]
    tens = [x for x in found if math.isclose(10 ** round(math.log10(x)), x)]
    return tens if len(tens) > 2 else found


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
