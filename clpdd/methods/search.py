"""Settings that are ``auto``: chosen on validation features by short distillations before the one that counts.

Both settings decide how sharply the probe is drawn, and the value that does best differs between encoders
(arXiv 2605.07194, the ablation of both). They are searched one after the other, each on a short grid around its
default; another value takes the default's place only where it is better by more than the standard error of the
validation accuracy.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

from ..config.distill import TRIAL_STEPS, TRIED, DistillSettings
from ..optimise.context import Context, Snapshot, Spent, Watch
from ..optimise.loop import optimise
from ..optimise.parameterisation import pyramid_resolutions
from ..storage.files import read_json, remove, write_json
from .problem import FeatureProblem

__all__ = ["settled"]

log = logging.getLogger(__name__)

_JUDGE = 1.0
"""Ridge of the probes that all are judged by, ``evaluate.ridge`` by default."""


def settled(context: Context, problem: Callable[[Context], FeatureProblem]) -> Context:
    """The context with a number for every setting that is ``auto``; itself where none is.

    What was tried and chosen goes into ``record["search"]``; seconds and encoder passes of the search count as the
    distillation's own (``spent``). A killed search goes on with the value, and the step, that it was at.

    Args:
        problem: makes the method's problem of a context.

    Raises:
        Preempted: asked to stop; what was found so far is saved.
    """
    names = context.settings.searched
    settings = context.settings.model_copy(update={name: context.settings.number(name) for name in TRIED})
    if not names:
        return replace(context, settings=settings)
    trials = _Trials(context, problem)
    for name in names:
        best = default = trials.score(settings)
        margin = 100 * math.sqrt(default / 100 * (1 - default / 100) / len(context.validation))
        for value in TRIED[name]:
            other = settings.model_copy(update={name: value})
            score = trials.score(other)
            if score > max(best, default + margin):
                best, chosen = score, value
        if best > default:
            settings = settings.model_copy(update={name: chosen})
        if context.ranks.is_main:
            log.info("distill.%s: %g, by validation", name, settings.number(name))
    found: dict[str, Any] = {"chosen": {name: settings.number(name) for name in names}, "tried": trials.told}
    return replace(context, settings=settings, record=context.record | {"search": found}, spent=trials.spent)


class _Trials:
    """Short distillations, each made once; rank 0 keeps what they gave in ``search.json``."""

    def __init__(self, context: Context, problem: Callable[[Context], FeatureProblem]) -> None:
        self.context, self.problem = context, problem
        self.path = context.work / "search.json"
        known = read_json(self.path) if context.ranks.is_main and self.path.exists() else {}
        self.known: dict[str, dict[str, float]] = context.ranks.broadcast_object(known)
        self.asked: list[str] = []

    @property
    def spent(self) -> Spent:
        """On all that was tried."""
        made = self.known.values()
        forward, backward = (int(sum(trial[way] for trial in made)) for way in ("forward", "backward"))
        return Spent(sum(trial["seconds"] for trial in made), forward, backward)

    @property
    def told(self) -> list[dict[str, float]]:
        """What was tried, in order, without what differs between two equal runs."""
        return [
            {key: trial[key] for key in (*TRIED, "validation_top1")}
            for trial in map(self.known.__getitem__, self.asked)
        ]

    def score(self, settings: DistillSettings) -> float:
        """Top-1 in percent on validation features after a short distillation."""
        values = {name: settings.number(name) for name in TRIED}
        name = "-".join(f"{key}-{value:g}" for key, value in values.items())
        if name not in self.asked:
            self.asked.append(name)
        if name not in self.known:
            self.known[name] = self.context.ranks.broadcast_object(values | self._made(settings, name))
            if self.context.ranks.is_main:
                write_json(self.path, self.known)
                remove(self.context.work / "search" / name)
        return self.known[name]["validation_top1"]

    def _made(self, settings: DistillSettings, name: str) -> dict[str, float]:
        context, seconds = self.context, [0.0]
        if context.ranks.is_main:
            log.info("distill: trying %s", name.replace("-", " "))
        steps = min(TRIAL_STEPS, settings.steps)
        levels = len(pyramid_resolutions(context.size))
        few = {"steps": steps, "keep": "last", "validate_every": steps, "preview_every": steps}
        few["extend_every"] = max(1, min(settings.extend_every, steps // levels))

        def timed(snapshot: Snapshot) -> None:
            seconds[0] = snapshot.seconds

        short = replace(
            context,
            settings=settings.model_copy(update=few),
            work=context.work / "search" / name,
            watch=Watch(snapshots=(steps,), on_snapshot=timed),
            record={},
        )
        with closing(self.problem(short)) as problem:
            made = optimise(short, problem)
        passes = made.info["encoder_images"]
        judging = replace(short, settings=short.settings.model_copy(update={"ridge": _JUDGE}))
        own = context.rows
        with closing(self.problem(judging)) as judge:
            score = judge.validate(made.images[own.start : own.stop] if context.ranks.is_main else made.images)
        return {"validation_top1": score, "seconds": seconds[0], **passes}
