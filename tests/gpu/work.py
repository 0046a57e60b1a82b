"""A small real world on a CUDA device, and distillations of it in processes that can be killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from clpdd import AugmentSettings, DatasetSettings, DistillSettings, Workspace
from clpdd.config.runtime import RuntimeSettings
from clpdd.config.settings import Settings
from clpdd.config.variants import MethodVariant
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.loading import load_encoder
from clpdd.methods.problem import FeatureProblem
from clpdd.optimise.context import Watch
from clpdd.optimise.passes import Plan
from clpdd.stages.distill import distill
from clpdd.stages.project import Project, Run
from clpdd.storage.files import sha256_tree
from clpdd.storage.layout import Layout

__all__ = ["ENCODERS", "ROOT", "digest", "started", "workspace"]

ROOT = Path(__file__).parent.parent.parent
ENCODERS: dict[str, dict[str, Any]] = {
    "convolutional": {"name": "clpdd_resnet14", "image_size": 32},
    "transformer": {"name": "vit_tiny_patch16_224", "image_size": 64, "untrained": 0, "arguments": {"depth": 4}},
}
VIEWS = AugmentSettings(flip=0.5, crop_area=[0.5, 1.0])


def workspace(root: Path, kind: str, device: str = "cuda") -> Workspace:
    """Some digits, seen by one of the ``ENCODERS``."""
    encoder = load_encoder(**ENCODERS[kind], device=device)
    data = DatasetSettings.model_validate({"name": "digits", "max_per_class": {"train": 20, "test": 6}})
    work = Workspace(root / kind / device, encoder, data)
    work.kernels()
    return work


def started(root: Path, kind: str, out: Path, case: dict[str, Any], hold_at: int = 0) -> subprocess.Popen[str]:
    """A distillation in a process of its own, which says the steps that it validates and waits at ``hold_at``.

    ``case`` has ``settings``, ``runtime`` and ``plan``, each of which may be missing; a plan is taken in place of what
    so small a world would be given on so large a device.
    """
    command = [sys.executable, "-m", "tests.gpu.work", json.dumps([str(root), kind, str(out), case, hold_at])]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def digest(out: Path) -> str:
    """Of every byte of the set that ``started`` made."""
    return sha256_tree(out / "set")


def _carry_out(root: str, kind: str, out: str, case: dict[str, Any], hold_at: int) -> None:
    encoder, settings = load_encoder(**ENCODERS[kind], device="cuda"), case.get("settings", {})
    if plan := case.get("plan"):
        FeatureProblem._planned = lambda self: Plan(**plan)  # type: ignore[method-assign]
    layout, name = Layout(Path(root) / kind / "cuda"), encoder.name  # made before: many of these run at once

    def say(step: int, _: dict[str, float]) -> None:
        print(step, flush=True)
        if step == hold_at:
            sys.stdin.read()  # for ever: the parent kills

    method = settings.pop("method", "clp")
    made: DistilledSet = distill(
        MethodVariant(method, method, DistillSettings(augment=VIEWS, **settings)),
        Project(Settings(), layout).training(name),
        encoder,
        Path(out) / "set",
        run=Run(work=Path(out) / "work", runtime=RuntimeSettings(**case.get("runtime", {}))),
        watch=Watch(on_progress=say),
    )
    print(len(made), flush=True)


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    _carry_out(*json.loads(sys.argv[1]))
