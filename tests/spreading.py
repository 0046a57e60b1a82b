"""What the tests of distillation over ranks run, in one process or as one of several: ``python -m tests.spreading``."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor

from clpdd.config.augment import AugmentSettings
from clpdd.config.distill import DistillSettings
from clpdd.distilled.dataset import DistilledSet
from clpdd.distributed.group import ALONE, Ranks
from clpdd.distributed.launch import connect
from clpdd.encoders.loading import load_encoder
from clpdd.errors import ClpddError, Preempted, SettingsError
from clpdd.functional.parts import parts_of
from clpdd.functional.seeding import generator
from clpdd.methods.clp import ClosedFormProbe
from clpdd.methods.lgm import GradientMatch
from clpdd.methods.problem import FeatureProblem
from clpdd.methods.search import settled
from clpdd.methods.sfm_decouple import CentreMatch
from clpdd.optimise.context import Context
from clpdd.stages.distill import distill
from clpdd.storage.files import write_json
from clpdd.storage.layout import Layout
from tests.runs import variant

from .conftest import World
from .contexts import open_context
from .pixels import gradient

IMAGES = {"default": 1, "3": 2}  # eleven, so that two ranks have five and six

LOSSES: dict[str, tuple[type[FeatureProblem], dict[str, Any]]] = {
    "mini-batch, one pass": (ClosedFormProbe, {"outer_batch": 37, "encoder_batch": 64}),
    "mini-batch, two passes": (ClosedFormProbe, {"outer_batch": 37, "encoder_batch": 3}),
    "whole set, one pass here and two there": (ClosedFormProbe, {"outer_batch": 0, "encoder_batch": 11}),
    "moments": (ClosedFormProbe, {"outer_batch": 0, "encoder_batch": 64, "objective": "mse"}),
    "fewer real rows than ranks": (ClosedFormProbe, {"outer_batch": 1, "encoder_batch": 64}),
    "learned labels": (ClosedFormProbe, {"labels": "learned", "encoder_batch": 64}),
    "lgm": (GradientMatch, {"encoder_batch": 6}),
    "sfm, decoupled": (CentreMatch, {"encoder_batch": 6, "own_share": 0.5}),
    "clp, two members": (ClosedFormProbe, {"outer_batch": 37, "encoder_batch": 64}),
    "lgm, two members": (GradientMatch, {"encoder_batch": 64}),
}
"""By name: a problem and its settings."""

STEPS = 8
RUN: dict[str, Any] = {
    "augmentations": 1,
    "outer_batch": 32,
    "labels": "learned",
    "initialisation": "noise",
    "extend_every": 2,
    "validate_every": 3,
    "preview_every": 3,
    "images_per_class": IMAGES,
}


def losses(world: World, work: Path, ranks: Ranks = ALONE) -> dict[str, dict[str, Tensor]]:
    """Of every one of ``LOSSES``: its value, gradients and validation score, the same on all ranks or on the first."""
    found = {}
    for name, (kind, settings) in LOSSES.items():
        made = _context(world, work / name, ranks, settings)
        pixels = torch.rand(len(made.labels), 3, 64, 64, generator=generator(0, "test"))
        own = pixels[made.rows.start : made.rows.stop]
        with closing(kind(made)) as problem:
            if "members" in name:  # as if its features were those of two encoders
                problem.parts = parts_of([(200, 1.0), (world.encoder.dim - 200, 3.0)])
            loss, pull = gradient(problem, own, 5)
            found[name] = {
                "loss": torch.tensor(loss),
                "gradient": ranks.gather(pull, len(pixels)),
                "score": torch.tensor(problem.validate((own * 255).byte())),
                "cost": torch.tensor(problem.cost[1]),
            }
            if problem.targets.learned:
                problem.targets.update(0.1)
                found[name]["labels"] = problem.targets.probabilities.detach()
    return found


def _context(world: World, work: Path, ranks: Ranks, settings: dict[str, Any]) -> Context:
    work.mkdir(parents=True, exist_ok=True)
    augment = AugmentSettings(flip=0.5, noise=0.5)
    chosen = DistillSettings(augmentations=2, augment=augment, images_per_class=IMAGES, **settings)
    return open_context(world.layout.index("train"), world.layout, world.encoder, work, chosen, ranks)


def run(
    world: World, root: Path, ranks: Ranks = ALONE, method: str = "clp", steps: int = STEPS, **more: Any
) -> DistilledSet:
    """One distillation: work and result go below ``root``."""
    places = world.inputs(root, checkpoint_every_steps=2) | {"target": root / method}
    places["run"] = dataclasses.replace(places["run"], ranks=ranks)
    return distill(variant(method, DistillSettings(steps=steps, **RUN)), **places, **more)


def searched(world: World, work: Path, ranks: Ranks = ALONE) -> list[dict[str, float]]:
    """What a search for temperature and ridge tried, and what it gave."""
    few: dict[str, Any] = {"steps": 2, "outer_batch": 32, "temperature": "auto", "ridge": "auto"}
    made = settled(_context(world, work, ranks, few), ClosedFormProbe)
    tried: list[dict[str, float]] = made.record["search"]["tried"]
    return tried


@contextlib.contextmanager
def _at_validation(number: int, then: Callable[[], object]) -> Iterator[None]:
    """Do something when a run comes to its validation of this number."""
    validate, count = FeatureProblem.validate, iter(range(1, 1000))

    def watched(problem: FeatureProblem, pictures: Tensor) -> float:
        if next(count) == number:
            then()
        return validate(problem, pictures)

    with mock.patch.object(FeatureProblem, "validate", watched):
        yield


def _hold() -> None:
    print("held", flush=True)
    sys.stdin.read()  # until killed, or until the test has ended
    sys.exit(1)


def before_the_kill(world: World, root: Path, ranks: Ranks) -> None:
    """Losses, a whole run, and a run whose second rank waits at step 6 for being killed."""
    found = losses(world, root / f"losses-{ranks.rank}", ranks)
    if ranks.is_main:
        flat = {f"{name}/{what}": tensor.contiguous() for name, own in found.items() for what, tensor in own.items()}
        save_file(flat, root / "losses.safetensors")
    run(world, root / "whole", ranks)
    tried = searched(world, root / "searched", ranks)
    if ranks.is_main:
        write_json(root / "searched.json", tried)
    with contextlib.nullcontext() if ranks.is_main else _at_validation(2, _hold):
        run(world, root / "killed", ranks)


def after_the_kill(world: World, root: Path, ranks: Ranks) -> None:
    """The killed run and one that one process has begun go on; a third is stopped on the second rank; and so forth."""
    run(world, root / "killed", ranks)
    run(world, root / "begun", ranks)
    with contextlib.nullcontext() if ranks.is_main else _at_validation(1, stop_this_process):
        try:
            run(world, root / "stopped", ranks)
        except Preempted as error:
            print(error)
    run(world, root / "whole", ranks, "neighbor")
    try:
        run(world, root / "other", ranks, steps=STEPS + ranks.rank)
    except SettingsError as error:
        print(error)


def stop_this_process() -> None:
    """As a scheduler does."""
    os.kill(os.getpid(), signal.SIGUSR1)


if __name__ == "__main__":
    phase, layout, root = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with connect() as ranks:
            world = World(Layout(Path(layout)), load_encoder("clpdd_resnet14", device="cpu"))
            globals()[phase](world, Path(root), ranks)
    except ClpddError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
