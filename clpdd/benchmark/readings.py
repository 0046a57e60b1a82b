"""What a comparison's table says: curves over time and steps, readings at equal time, time to equal accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev, variance
from typing import Any

__all__ = [
    "Curve",
    "Duel",
    "End",
    "Mean",
    "accuracy_at",
    "curves",
    "duels",
    "ends",
    "facts",
    "mean",
    "mean_by_time",
    "mean_curve",
    "skipped",
    "time_to",
]

Rows = Sequence[dict[str, Any]]
Points = Sequence[tuple[float, float]]
"""Pairs of (time or steps, top-1 in percent) in rising order of the first."""


@dataclass(frozen=True)
class Mean:
    """A mean over runs, their sample standard deviation (``None`` below two) and how many there are."""

    mean: float
    std: float | None
    runs: int


@dataclass(frozen=True)
class End(Mean):
    """A mean over distillations (and draws of real images), with the deviation over them and over probes told apart.

    Attributes:
        mean: over the distillations, each the mean of its probes.
        std: over the distillations: ``None`` where there is one.
        runs: distinct distillations and draws.
        probe_std: of the probes of one distillation, pooled over all; ``None`` where each has one probe.
    """

    probe_std: float | None


@dataclass(frozen=True)
class Curve:
    """One distillation: its points, judged by one protocol."""

    name: str
    seed: int
    by_time: list[tuple[float, float]]
    by_steps: list[tuple[float, float]]


@dataclass(frozen=True)
class Duel:
    """A peer against its reference, seed by seed.

    Attributes:
        reference_end: accuracy of the reference at its end.
        reference_seconds: how long that took.
        equal: the peer's accuracy in the same time.
        late: the peer's accuracy at its own end.
        factor: its time at its end, in times of the reference's.
        lead_equal, lead_late: the reference at its end minus the peer, in percentage points.
        reached: seconds of the peer to the reference's accuracy, over the seeds that got there; ``None``: none did.
        caught: seconds of the reference to the best accuracy that the peer ever had; the same.
    """

    name: str
    reference: str
    reference_end: Mean
    reference_seconds: Mean
    equal: Mean
    late: Mean
    factor: Mean
    lead_equal: Mean
    lead_late: Mean
    reached: Mean | None
    caught: Mean | None


def mean(values: Iterable[float]) -> Mean:
    """Mean and standard deviation of at least one value."""
    known = list(values)
    return Mean(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


def accuracy_at(points: Points, place: float) -> float:
    """Accuracy after ``place`` seconds (or steps): on the straight line between points, and after the last the last's.

    A distillation that is over keeps the images it has ended with. Raises ``ValueError`` before the first point.
    """
    if place < points[0][0]:
        raise ValueError(f"nothing is known of {place:g}: the first point is at {points[0][0]:g}")
    for (x0, y0), (x1, y1) in pairwise(points):
        if place < x1:
            return y0 + (y1 - y0) * (place - x0) / (x1 - x0)
    return points[-1][1]


def time_to(points: Points, accuracy: float) -> float | None:
    """Where the straight lines between points first reach ``accuracy``; ``None`` when they do not."""
    if points[0][1] >= accuracy:
        return points[0][0]
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < accuracy <= y1:
            return x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0)
    return None


def curves(rows: Rows) -> list[Curve]:
    """The distillations with steps among rows of one protocol; a point is the mean over its probes."""
    found: dict[tuple[str, int], dict[int, list[dict[str, Any]]]] = {}
    for row in rows:
        if row["step"] is not None:
            found.setdefault((row["name"], row["seed"]), {}).setdefault(row["step"], []).append(row)
    made = []
    for (name, seed), steps in found.items():
        scores = [(step, fmean(r["top1"] for r in own), own[0]["seconds"]) for step, own in sorted(steps.items())]
        by_time = [(seconds, top1) for _, top1, seconds in scores]
        made.append(Curve(name, seed, by_time, [(float(step), top1) for step, top1, _ in scores]))
    return made


def mean_curve(several: Sequence[Points]) -> list[tuple[float, Mean]]:
    """Mean and standard deviation of curves wherever one of them has a point, up to where the first of them ends."""
    last = min(points[-1][0] for points in several)
    first = max(points[0][0] for points in several)
    places = sorted({x for points in several for x, _ in points if first <= x <= last})
    return [(x, mean(accuracy_at(points, x) for points in several)) for x in places]


def mean_by_time(runs: Sequence[Curve]) -> list[tuple[float, Mean]]:
    """``mean_curve`` over seconds; of distillations judged after the same steps each mark at its mean time.

    Between the marks of one that was slower, of a busier machine say, lies no accuracy that any had: a mark is a mark.
    """
    marks = {tuple(step for step, _ in run.by_steps) for run in runs}
    if len(marks) != 1:
        return mean_curve([run.by_time for run in runs])
    several = zip(*(run.by_time for run in runs), strict=True)
    return [(fmean(x for x, _ in points), mean(y for _, y in points)) for points in several]


def ends(rows: Rows, value: Callable[[dict[str, Any]], float | None]) -> dict[str, End]:
    """Method -> ``value`` at the end of its distillations; rows without one are left out.

    Rows of one seed and draw are probes of the same images.
    """
    runs: dict[str, dict[tuple[int, int], list[float]]] = {}
    for row in rows:
        number = value(row) if row["last"] else None
        if number is not None:
            runs.setdefault(row["name"], {}).setdefault((row["seed"], row["draw"]), []).append(number)
    return {name: _end(list(own.values())) for name, own in runs.items()}


def _end(probes: list[list[float]]) -> End:
    over = mean(map(fmean, probes))
    freedom = sum(len(own) - 1 for own in probes)
    squares = sum((len(own) - 1) * variance(own) for own in probes if len(own) > 1)
    return End(over.mean, over.std, over.runs, math.sqrt(squares / freedom) if freedom else None)


def duels(rows: Rows) -> list[Duel]:
    """Every peer against its reference, in rows of one protocol and one number of images per class."""
    known = {(curve.name, curve.seed): curve.by_time for curve in curves(rows)}
    pairs = dict.fromkeys((row["name"], row["reference"]) for row in rows if row["reference"])
    return [_duel(name, reference, known) for name, reference in pairs]


def _duel(name: str, reference: str, known: dict[tuple[str, int], list[tuple[float, float]]]) -> Duel:
    seeds = sorted(seed for own, seed in known if own == name and (reference, seed) in known)
    peers, others = [known[name, seed] for seed in seeds], [known[reference, seed] for seed in seeds]
    both = list(zip(peers, others, strict=True))
    equal = [accuracy_at(peer, other[-1][0]) for peer, other in both]
    late, end = [peer[-1][1] for peer in peers], [other[-1][1] for other in others]
    return Duel(
        name,
        reference,
        reference_end=mean(end),
        reference_seconds=mean(other[-1][0] for other in others),
        equal=mean(equal),
        late=mean(late),
        factor=mean(peer[-1][0] / other[-1][0] for peer, other in both),
        lead_equal=mean(a - b for a, b in zip(end, equal, strict=True)),
        lead_late=mean(a - b for a, b in zip(end, late, strict=True)),
        reached=_over_those_that_did(time_to(peer, other[-1][1]) for peer, other in both),
        caught=_over_those_that_did(time_to(other, max(top1 for _, top1 in peer)) for peer, other in both),
    )


def _over_those_that_did(times: Iterable[float | None]) -> Mean | None:
    known = [seconds for seconds in times if seconds is not None]
    return mean(known) if known else None


def facts(rows: Rows) -> list[dict[str, Any]]:
    """Command, machine and versions of every distinct making of the rows."""
    seen = dict.fromkeys((row["command"], row["machine"], row["versions"]) for row in rows)
    return [{"command": c, "machine": m, "versions": json.loads(v)} for c, m, v in seen]


def skipped(rows: Rows) -> list[str]:
    """Protocols that the settings ask for and a comparison with one encoder does not run, sorted."""
    return sorted({name for row in rows for name in json.loads(row["skipped"] or "[]")})
