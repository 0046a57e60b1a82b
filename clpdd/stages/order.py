"""The stages in their order, and what each is repeated for: the place that a whole run without DVC reads it from.

``dvc.yaml`` says the same to DVC; a test holds the two together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..config.settings import Settings
from .cache import run_cache
from .distill import run_distill
from .evaluate import run_evaluate
from .index import run_index
from .inputs import run_inputs
from .kernels import run_kernels
from .project import Project
from .report import run_report

__all__ = ["STAGES", "Stage", "Step", "run_all", "steps"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        run: called with the project and one item of each of ``over``.
        over: the lists of the settings that it is repeated for, the outer one first: ``encoders``, ``methods``.
    """

    run: Callable[..., Any]
    over: tuple[str, ...] = ()


def _inputs(project: Project) -> None:
    run_inputs(project.settings, project.layout)


STAGES: Mapping[str, Stage] = {
    "inputs": Stage(_inputs),
    "index": Stage(run_index),
    "cache": Stage(run_cache, ("encoders",)),
    "kernels": Stage(run_kernels, ("encoders",)),
    "distill": Stage(run_distill, ("encoders", "methods")),
    "evaluate": Stage(run_evaluate),
    "report": Stage(run_report),
}
"""Name -> stage, in the order in which they run."""


@dataclass(frozen=True)
class Step:
    """One stage for one item of each of its lists."""

    stage: str
    items: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The same as arguments of ``clpdd``: ``["distill", "--encoder", NAME, "--method", NAME]``."""
        options = (f"--{name.removesuffix('s')}" for name in STAGES[self.stage].over)
        return [self.stage, *(word for pair in zip(options, self.items, strict=True) for word in pair)]

    def __str__(self) -> str:
        return f"{self.stage} ({', '.join(self.items)})" if self.items else self.stage


def steps(settings: Settings) -> list[Step]:
    """Everything a whole run takes, in order."""
    found = []
    for name, stage in STAGES.items():
        items: list[tuple[str, ...]] = [()]
        for key in stage.over:
            items = [(*before, item) for before in items for item in getattr(settings, key)]
        found += [Step(name, chosen) for chosen in items]
    return found


def run_all(project: Project) -> None:
    """Run every stage of a project in this process; what is finished is found again, what was killed is continued.

    Raises what the stages raise. Everything finished before is kept.
    """
    todo = steps(project.settings)
    for number, step in enumerate(todo, 1):
        log.info("[%d/%d] %s", number, len(todo), step)
        STAGES[step.stage].run(project, *step.items)
