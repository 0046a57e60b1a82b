"""``python -m tests.device LIBRARY FOLDER``: distil and evaluate there and on the CPU, and compare.

Started again by several ranks it distils there with all of them, and compares with what the CPU made before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from clpdd import AugmentSettings, DatasetSettings, DistillSettings, EvaluateSettings, Workspace
from clpdd.config.runtime import RuntimeSettings
from clpdd.config.settings import Settings
from clpdd.config.variants import MethodVariant
from clpdd.distilled.dataset import DistilledSet
from clpdd.distributed.group import ALONE, Ranks
from clpdd.distributed.launch import connect
from clpdd.encoders.loading import load_encoder
from clpdd.probe.classifier import train_classifier
from clpdd.stages.distill import distill
from clpdd.stages.project import Project, Run

from . import install

VIEWS = AugmentSettings(flip=0.5, crop_area=[0.5, 1.0])
CHOICES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("clp", {"encoder_batch": 64}, {}),
    ("clp", {"encoder_batch": 4, "initialisation": "noise", "extend_every": 1}, {"state": "host"}),
    ("clp", {"outer_batch": 40, "labels": "learned"}, {"features": "host"}),
    ("clp", {"outer_batch": 0, "labels": "probe", "parameterisation": "pixels"}, {"features": "stream"}),
    ("clp", {"outer_batch": 0, "objective": "mse"}, {}),
    ("clp", {"outer_batch": 40, "objective": "cosine", "centre": "none"}, {"features": "stream"}),
    ("lgm", {"encoder_batch": 7}, {}),
    ("neighbor", {}, {}),
    ("centroid", {}, {}),
    ("random", {}, {}),
]


def sets(work: Workspace, folder: Path, ranks: Ranks = ALONE, **common: Any) -> list[DistilledSet]:
    """Every choice distilled in a few steps; ``common`` settings go to all."""
    made, data = [], Project(Settings(), work.layout).training(work.encoder.name)
    for number, (method, settings, runtime) in enumerate(CHOICES):
        chosen = DistillSettings(steps=3, augmentations=2, augment=VIEWS, **common, **settings)
        made.append(
            distill(
                MethodVariant(method, method, chosen),
                data,
                work.encoder,
                folder / str(number),
                run=Run(work=folder / "work", runtime=RuntimeSettings(**runtime), ranks=ranks),
            )
        )
    return made


def workspace(root: Path, device: str) -> Workspace:
    """Some digits, seen by a small encoder on ``device``."""
    encoder = load_encoder("clpdd_resnet14", image_size=32, device=device)
    data = DatasetSettings.model_validate({"name": "digits", "max_per_class": {"train": 20, "test": 6}})
    return Workspace(root / device, encoder, data)


def main(library: str, folder: str) -> None:
    """Fails when anything differs by more than rounding."""
    torch.set_num_threads(1)
    device, root = install(Path(library)), Path(folder)
    _refuses_unlike(device)
    with connect() as ranks:
        if ranks.size == 1:
            _alone(str(device), root)
            return
        work = workspace(root, str(device))
        _compare(
            [DistilledSet.load(root / "cpu" / "sets" / str(number)) for number in range(len(CHOICES))],
            sets(work, root / "ranks", ranks),
        )


def _refuses_unlike(device: torch.device) -> None:
    """A fused update by a gradient of other strides ends as it does on CUDA, and one of the same is made."""
    parameter, mean, square = (torch.zeros(2, 3, 4, 4, device=device) for _ in range(3))
    foreign = torch.ones(2, 4, 4, 3, device=device).permute(0, 3, 1, 2)
    for gradient, refused in ((foreign, True), (foreign.contiguous(), False)):
        try:
            torch._fused_adam_(
                [parameter], [gradient], [mean], [square], [], [torch.zeros((), device=device)], lr=0.1, beta1=0.9,
                beta2=0.999, weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            said = ""
        except RuntimeError as error:
            said = str(error)
        assert ("must have same dtype, device, and layout" in said) == refused, said
        assert bool(parameter.any()) != refused


def _alone(device: str, root: Path) -> None:
    found: list[Any] = []
    for place in ("cpu", device):
        work = workspace(root, place)
        encoder = work.encoder
        work.kernels()
        made = sets(work, root / place / "sets")
        work.distill("centroid", DistillSettings(augment=VIEWS))
        settings = EvaluateSettings(seeds=2, views=3, epochs=10, augment=VIEWS)
        scores = work.evaluate("centroid", settings=settings)
        fresh = work.evaluate("centroid", settings=settings.model_copy(update={"views": 0, "protocols": ["sgd"]}))
        classifiers = [train_classifier(made[2], encoder, settings, protocol=p) for p in ("sgd", "closed_form")]
        found.append((made, scores, fresh, classifiers))
    (here, scores, fresh, classifiers), (there, *others) = found
    _compare(here, there)
    assert abs(scores["centroid"]["closed_form (clean)"] - others[0]["centroid"]["closed_form (clean)"]) < 2
    assert fresh.keys() == others[1].keys()
    for one, other in zip(classifiers, others[2], strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=0.01, atol=0.01)


def _compare(here: list[DistilledSet], there: list[DistilledSet]) -> None:
    for (method, settings, _), one, other in zip(CHOICES, here, there, strict=True):
        apart = (one.images.int() - other.images.int()).abs().float().mean().item()
        assert apart < 0.5, f"{method} {settings}: pixels are {apart} levels apart"


if __name__ == "__main__":
    main(*sys.argv[1:])
