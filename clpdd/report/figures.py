"""Geometry of the charts, in percent of the drawing area: the template draws, the browser scales, text stays text.

Charts are drawn without a plotting library so that they follow the reader's width and light or dark colours; equal
numbers give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .data import TITLES, full_accuracy

__all__ = ["Bar", "BarPanel", "Curve", "CurvePanel", "Tick", "accuracy_panels", "curve_panels", "matrix", "nice_ticks"]

_POINTS = 150
"""Points of a curve that are drawn; between them the mean is shown with the range around it."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, ``at`` in percent of its length."""

    at: float
    label: str


@dataclass(frozen=True)
class Bar:
    """One method's accuracy: percentages that are places on the axis at once."""

    method: str
    label: str
    mean: float
    low: float
    high: float
    std: float | None


@dataclass(frozen=True)
class BarPanel:
    """Every method under one probe protocol, against the probe on all training images (``full``)."""

    encoder: str
    protocol: str
    views: str
    bars: list[Bar]
    full: float | None


@dataclass(frozen=True)
class Curve:
    """A line; ``line`` and ``band`` are SVG path data in a 100 x 100 box, ``dots`` are (x, y) in it."""

    method: str
    colour: int
    line: str
    band: str
    dots: list[tuple[float, float]]
    kept: tuple[float, float] | None
    last: str


@dataclass(frozen=True)
class CurvePanel:
    """Curves that share their axes."""

    title: str
    encoder: str
    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    logarithmic: bool


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) that span ``[low, high]``."""
    if not high > low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def accuracy_panels(summary: list[dict[str, Any]]) -> list[BarPanel]:
    """A panel per (encoder, protocol, views), of probes on images that were distilled with the same encoder."""
    panels: dict[tuple[str, str, str], list[Bar]] = {}
    for line in summary:
        own = line["eval_encoder"] == line["distil_encoder"] and line["method"] != "full"
        if own and line["top1"]["mean"] is not None:
            key = (line["eval_encoder"], line["protocol"], line["views"])
            panels.setdefault(key, []).append(_bar(line))
    return [BarPanel(*key, bars, full_accuracy(summary, key[0], key[1])) for key, bars in panels.items()]


def _bar(line: dict[str, Any]) -> Bar:
    mean, std = line["top1"]["mean"], line["top1"]["std"]
    low, high = max(0.0, mean - (std or 0)), min(100.0, mean + (std or 0))
    label = TITLES.get(line["method"], line["method"])
    return Bar(line["method"], label, round(mean, 3), round(low, 3), round(high, 3), std)


def curve_panels(curves: list[dict[str, Any]]) -> list[CurvePanel]:
    """Outer loss and validation accuracy by step, a pair of panels per encoder."""
    panels = []
    colours = {method: i for i, method in enumerate(dict.fromkeys(c["method"] for c in curves))}
    for encoder in dict.fromkeys(c["encoder"] for c in curves):
        own = [c for c in curves if c["encoder"] == encoder]
        for key, title in (("loss", "Outer loss"), ("validation_top1", "Validation top-1, %")):
            drawn = [c for c in own if len(c[key]) > 1]
            if drawn:
                panels.append(_curve_panel(title, encoder, key, drawn, colours))
    return panels


def _curve_panel(
    title: str, encoder: str, key: str, drawn: list[dict[str, Any]], colours: dict[str, int]
) -> CurvePanel:
    xs = [x for c in drawn for x, _ in c[key]]
    ys = [y for c in drawn for _, y in c[key]]
    logarithmic = key == "loss" and min(ys) > 0 and max(ys) > 20 * min(ys)
    x_ticks, y_ticks = nice_ticks(min(0, *xs), max(xs)), _value_ticks(min(ys), max(ys), logarithmic)
    y_low, y_high = _scaled(y_ticks[0], logarithmic), _scaled(y_ticks[-1], logarithmic)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_high - x_ticks[0])
        return round(100 * across, 2), round(100 - 100 * (_scaled(y, logarithmic) - y_low) / (y_high - y_low), 2)

    x_high = max(xs)  # the axis ends where the run ends, ticks beyond it are left out
    curves = []
    for c in drawn:
        bins = _bins(c[key])
        middle = [place(x, mean) for x, mean, _, _ in bins]
        upper, lower = [place(x, high) for x, _, _, high in bins], [place(x, low) for x, _, low, _ in bins]
        band = _path(upper + lower[::-1]) + " Z" if len(c[key]) > _POINTS else ""
        dots = middle if len(c[key]) <= 40 else []
        kept = next((place(x, y) for x, y in c[key] if x == c["kept_step"]), None) if key != "loss" else None
        name, last = TITLES.get(c["method"], c["method"]), _number(c[key][-1][1])
        curves.append(Curve(name, colours[c["method"]], _path(middle), band, dots, kept, last))
    across = [Tick(place(x, y_ticks[0])[0], f"{x:,.0f}") for x in x_ticks if x <= x_high]
    upward = [Tick(place(0, y)[1], _number(y)) for y in y_ticks]
    return CurvePanel(title, encoder, curves, across, upward, logarithmic)


def _scaled(y: float, logarithmic: bool) -> float:
    return math.log10(y) if logarithmic else y


def _value_ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return nice_ticks(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [10.0**p for p in powers]


def _bins(pairs: Sequence[Sequence[float]]) -> list[tuple[float, float, float, float]]:
    """At most ``_POINTS`` of (step, mean, lowest, highest) over runs of neighbouring steps."""
    width = -(-len(pairs) // _POINTS)
    found = []
    for start in range(0, len(pairs), width):
        part = pairs[start : start + width]
        values = [y for _, y in part]
        found.append((sum(x for x, _ in part) / len(part), sum(values) / len(values), min(values), max(values)))
    return found


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + " L".join(f"{x:g} {y:g}" for x, y in points)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def matrix(
    rows: Sequence[Sequence[float | None]], low: float, high: float, power: float = 1.0
) -> list[list[dict[str, Any]]]:
    """Cells of a heat map: ``value`` and its ``shade``, the percentage of the way from ``low`` to ``high``."""

    def cell(value: float | None) -> dict[str, Any]:
        span = (value - low) / (high - low) if value is not None and high > low else 0.0
        return {"value": value, "shade": round(100 * min(1.0, max(0.0, span)) ** power)}

    return [[cell(value) for value in row] for row in rows]
