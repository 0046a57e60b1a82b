"""When to kill: moments of every stage, recognised by what lies in the work folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MOMENTS", "Moment", "plan"]


def _count(pattern: str) -> Callable[[Path], int]:
    return lambda data: sum(1 for _ in data.glob(pattern))


def _always(data: Path) -> int:
    return 1


def _lines(pattern: str) -> Callable[[Path], int]:
    """Lines of the files that match: entries of a growing JSON record."""

    def count(data: Path) -> int:
        total = 0
        for file in data.glob(pattern):
            try:
                total += file.read_bytes().count(b"\n")
            except OSError:
                continue
        return total

    return count


def _changed(name: str) -> Callable[[Path], int]:
    """Grows whenever the file is opened for writing."""

    def changed(data: Path) -> int:
        try:
            return (data / name).stat().st_mtime_ns
        except OSError:
            return 0

    return changed


def _latest(pattern: str) -> Callable[[Path], int]:
    """The highest number at the end of a name that matches, in units of checkpoints."""

    def step(data: Path) -> int:
        return max((int(p.stem.rsplit("-", 1)[-1]) for p in data.glob(pattern)), default=0) // 5

    return step


@dataclass(frozen=True)
class Moment:
    """Kill ``after`` (seconds, drawn between the two) the count has grown by ``grown`` within this attempt.

    ``grown`` 0: as soon as the count is not zero, also when it was so from the beginning.
    """

    stage: str
    name: str
    count: Callable[[Path], int]
    after: tuple[float, float]
    grown: tuple[int, int] = (0, 0)


MOMENTS = [
    Moment("inputs", "start-up", _always, (0.0, 0.8)),
    Moment("inputs", "writing", _count("inputs/**/*"), (0.0, 0.01)),
    Moment("index", "start-up", _always, (0.0, 1.2)),
    Moment("index", "writing", _count("work/index/*/*/.clpdd-tmp-*/*.parquet"), (0.0, 0.05)),
    Moment("index", "publishing", _count("index/*.parquet"), (0.0, 0.01)),
    Moment("cache", "start-up", _always, (0.0, 3.0)),
    Moment("cache", "encoding", _count("work/cache/*/*/out/features.zarr/features/zarr.json"), (0.0, 0.5), (1, 1)),
    Moment("cache", "shard write", _count("work/cache/*/*/out/features.zarr/features/c/*/*"), (0.0, 0.02), (1, 5)),
    Moment("cache", "shard record", _lines("work/cache/*/*/shards.json"), (0.0, 0.02), (1, 5)),
    Moment("cache", "completing", _count("work/cache/*/*/out/features.zarr/labels"), (0.0, 0.05), (1, 1)),
    Moment("cache", "publishing", _count("work/cache/*/*/done.json"), (0.0, 0.5), (1, 1)),
    Moment("kernels", "start-up", _always, (0.0, 2.0)),
    Moment("kernels", "computing", _count("work/kernels/*/*/fingerprint.json"), (0.0, 0.15)),
    Moment("kernels", "saving", _count("work/kernels/*/*/out/kernels"), (0.0, 0.03)),
    Moment("kernels", "publishing", _count("work/kernels/*/*/done.json"), (0.0, 0.3)),
    Moment("distill clp", "start-up", _always, (0.0, 4.0)),
    Moment("distill clp", "step", _latest("work/distill/*-clp/*/checkpoints/*.json"), (0.0, 0.6), (1, 3)),
    Moment(
        "distill clp", "checkpoint write", _count("work/distill/*-clp/*/checkpoints/.clpdd-tmp-*"), (0.0, 0.003), (1, 1)
    ),
    Moment("distill clp", "checkpoint", _latest("work/distill/*-clp/*/checkpoints/*.safetensors"), (0.0, 0.01), (1, 2)),
    Moment("distill clp", "saving", _count("work/distill/*-clp/*/out/set"), (0.0, 0.1)),
    Moment("distill clp", "publishing", _count("work/distill/*-clp/*/done.json"), (0.0, 0.5)),
    Moment("distill real", "start-up", _always, (0.0, 2.5)),
    Moment("distill real", "saving", _count("work/distill/*/*/out/set"), (0.0, 0.1), (1, 1)),
    Moment("distill real", "publishing", _count("work/distill/*/*/done.json"), (0.0, 0.4), (1, 1)),
    Moment("evaluate", "start-up", _always, (0.0, 3.5)),
    Moment("evaluate", "pieces", _count("work/evaluate/*/*/out/*.json"), (0.0, 0.3), (1, 3)),
    Moment("evaluate", "piece write", _count("work/evaluate/*/*/out/.clpdd-tmp-*"), (0.0, 0.002), (1, 1)),
    Moment("evaluate", "results", _count("results/**/*"), (0.0, 0.03), (1, 3)),
    Moment("report", "start-up", _always, (0.0, 1.5)),
    Moment("report", "writing", _count("results/**/*report*"), (0.0, 0.05), (1, 2)),
    Moment("between", "DVC", _always, (0.0, 0.8)),
    Moment("between", "lock write", _changed("../dvc.lock"), (0.0, 0.03), (1, 1)),
]


def plan(rng: random.Random, kills: int, stages: tuple[str, ...]) -> list[Moment]:
    """``kills`` moments, spread evenly over the stages and, within a stage, over its moments."""
    drawn: list[Moment] = []
    decks: dict[str, list[Moment]] = {}
    while len(drawn) < kills:
        for stage in rng.sample(stages, len(stages)):
            deck = decks.get(stage) or rng.sample(here := [m for m in MOMENTS if m.stage == stage], len(here))
            drawn.append(deck.pop())
            decks[stage] = deck
    return drawn[:kills]
