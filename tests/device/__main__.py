"""``python -m tests.device LIBRARY FOLDER``: distil and evaluate there and on the CPU, and compare."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from clpdd import AugmentSettings, CacheSettings, DatasetSettings, DistillSettings, EvaluateSettings, Workspace
from clpdd.classifier import train_classifier
from clpdd.config import RuntimeSettings
from clpdd.distill import distill
from clpdd.distilled import DistilledSet
from clpdd.encoders import load_encoder

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


def sets(work: Workspace, folder: Path) -> list[DistilledSet]:
    """Every choice distilled in a few steps."""
    work.kernels()
    layout, name, made = work.layout, work.encoder.name, []
    for number, (method, settings, runtime) in enumerate(CHOICES):
        made.append(
            distill(
                method,
                index=layout.index("train"),
                train=layout.features(name, "train"),
                validation=layout.features(name, "validation"),
                kernels=layout.kernels(name),
                encoder=work.encoder,
                target=folder / str(number),
                work_root=folder / "work",
                settings=DistillSettings(steps=3, augmentations=2, augment=VIEWS, **settings),
                runtime=RuntimeSettings(**runtime),
            )
        )
    return made


def main(library: str, folder: str) -> None:
    """Fails when anything differs by more than rounding."""
    torch.set_num_threads(1)
    device, root = install(Path(library)), Path(folder)
    found: list[Any] = []
    for place in ("cpu", str(device)):
        encoder = load_encoder("clpdd_resnet14", image_size=32, device=place)
        data = DatasetSettings.model_validate({"name": "digits", "max_per_class": {"train": 20, "test": 6}})
        work = Workspace(root / place, encoder, data, cache=CacheSettings(workers=0))
        made = sets(work, root / place / "sets")
        work.distill("centroid", DistillSettings(augment=VIEWS))
        settings = EvaluateSettings(seeds=2, views=3, epochs=10, augment=VIEWS)
        scores = work.evaluate("centroid", settings=settings)
        fresh = work.evaluate("centroid", settings=settings.model_copy(update={"views": 0, "protocols": ["sgd"]}))
        classifiers = [train_classifier(made[2], encoder, settings, protocol=p) for p in ("sgd", "closed_form")]
        found.append((made, scores, fresh, classifiers))
    (here, scores, fresh, classifiers), (there, *others) = found
    for (method, settings_, _), one, other in zip(CHOICES, here, there, strict=True):
        apart = (one.images.int() - other.images.int()).abs().float().mean().item()
        assert apart < 0.5, f"{method} {settings_}: pixels are {apart} levels apart"
    assert abs(scores["centroid"]["closed_form (clean)"] - others[0]["centroid"]["closed_form (clean)"]) < 2
    assert fresh.keys() == others[1].keys()
    for one, other in zip(classifiers, others[2], strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=0.01, atol=0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
