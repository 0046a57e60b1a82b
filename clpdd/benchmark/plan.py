"""Which distillations a comparison is made of, and where on the way each is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..catalogue.methods import METHODS
from ..config.distill import DistillSettings
from ..config.settings import Settings
from ..errors import SettingsError

__all__ = ["UNTIL_STOPPED", "Job", "marks_by_clock", "marks_by_steps", "plan"]

UNTIL_STOPPED = 2**31
"""Steps of a job that ends by the clock: a constant schedule does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One distillation to make and to judge.

    Attributes:
        name: what ``methods`` calls it.
        method: the method behind the name.
        settings: what it runs with.
        seed: of the distillation.
        source: of ``neighbor``: the job whose images the real ones are near to, if it is among the jobs.
        reference: of a peer that runs by the clock: the job whose time it is given a multiple of.
        halvings: judged at 1/2, 1/4, ... of the steps or the time, so many times; ``None``: at the end alone.
        time_factor: multiple of the reference's time.
        choices: of an ablation: the (group, choice) pairs that it stands for.
    """

    name: str
    method: str
    settings: DistillSettings
    seed: int
    source: Job | None = None
    reference: Job | None = None
    halvings: int | None = 0
    time_factor: float = 1.0
    choices: tuple[tuple[str, str], ...] = ()

    @property
    def optimises(self) -> bool:
        """Whether there is a way to judge points of."""
        return METHODS[self.method].optimises

    @property
    def item(self) -> str:
        """Its name in the work folder."""
        return f"{self.name}/ipc{self.settings.images_per_class}/seed{self.seed}"


def plan(settings: Settings) -> list[Job]:
    """The jobs of the section ``benchmark``, each after what it needs.

    Methods that optimise (and ``neighbor``) are run with every seed, real images with the first alone.

    Raises:
        SettingsError: a peer that cannot be stopped by the clock.
    """
    wanted = settings.benchmark
    jobs: list[Job] = []
    for ipc in wanted.images_per_class:
        for seed in range(settings.seed, settings.seed + wanted.seeds):
            made: dict[str, Job] = {}
            for name in wanted.methods:
                made[name] = _job(settings, name, ipc, seed, made)
            jobs += [job for job in made.values() if _wanted(job, ipc, settings)]
    return jobs


def _wanted(job: Job, ipc: int, settings: Settings) -> bool:
    if job.method == "full":
        return job.seed == settings.seed and ipc == settings.benchmark.images_per_class[0]
    return job.seed == settings.seed or job.optimises or job.method == "neighbor"


def _job(settings: Settings, name: str, ipc: int, seed: int, made: dict[str, Job]) -> Job:
    wanted = settings.benchmark
    variant = settings.variant(name)
    method, chosen = variant.method, variant.settings
    changes: dict[str, Any] = {"images_per_class": ipc}
    reference = made[wanted.peers[name]] if name in wanted.peers else None
    if reference is not None:
        if not METHODS[method].optimises or not reference.optimises or chosen.schedule != "constant":
            raise SettingsError(
                f"benchmark.peers: {name} cannot be given a multiple of the time of {reference.name}: both must "
                f"optimise, and {name} with the schedule constant, whose every step is a valid end"
            )
        changes["steps"] = UNTIL_STOPPED
    elif wanted.steps is not None:
        changes["steps"] = wanted.steps
    chosen = chosen.model_copy(update=changes)
    return Job(
        name=name,
        method=method,
        settings=judged_at_the_end(chosen),
        seed=seed,
        source=made.get(chosen.neighbor_of) if method == "neighbor" else None,
        reference=reference,
        halvings=wanted.halvings,
        time_factor=wanted.time_factor,
    )


def judged_at_the_end(settings: DistillSettings) -> DistillSettings:
    """The settings without what costs time and is not needed here: scores, previews, and the choice of a best step."""
    return settings.model_copy(
        update={"keep": "last", "validate_every": settings.steps, "preview_every": settings.steps}
    )


def marks_by_steps(steps: int, halvings: int | None) -> list[int]:
    """The start, ``steps / 2^h``, ..., ``steps / 2``, ``steps``; the last alone when ``halvings`` is ``None``."""
    if halvings is None:
        return [steps]
    return sorted({0, *(steps >> h for h in range(halvings + 1))})


def marks_by_clock(seconds: float, factor: float, halvings: int) -> list[float]:
    """``seconds / 2^h``, ..., ``seconds``, then twice as long each time, and at last ``factor * seconds``."""
    early = [seconds / 2**h for h in range(halvings, 0, -1)]
    late = [seconds]
    while late[-1] * 2 < factor * seconds:
        late.append(late[-1] * 2)
    return [*early, *late, factor * seconds] if factor > 1 else [*early, *late]
