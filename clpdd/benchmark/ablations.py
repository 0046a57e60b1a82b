"""The paper's ablations: CLP-DD with one choice changed at a time, to be judged on validation features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..config.distill import DistillSettings
from ..config.settings import Settings
from ..config.variants import resolve
from ..storage.files import sha256_bytes
from .plan import Job, judged_at_the_end

__all__ = ["BASE", "GROUPS", "choices", "plan_ablations"]

BASE = "clp"

_NONE: dict[str, Any] = {"flip": 0.0, "crop": False, "noise": 0.0}

GROUPS: dict[str, dict[str, dict[str, Any]]] = {
    "objective": {
        "cross-entropy": {"objective": "cross_entropy"},
        "cosine": {"objective": "cosine"},
        "mean squared error": {"objective": "mse"},
    },
    "outer_batch": {
        "cross-entropy, 256 images": {"objective": "cross_entropy", "outer_batch": 256},
        "cross-entropy, 4,096 images": {"objective": "cross_entropy", "outer_batch": 4096},
        "cross-entropy, whole set": {"objective": "cross_entropy", "outer_batch": 0},
        "squared error, 4,096 images": {"objective": "mse", "outer_batch": 4096},
        "squared error, whole set": {"objective": "mse", "outer_batch": 0},
    },
    "parameterisation": {
        "pyramid": {"parameterisation": "pyramid"},
        "pixels": {"parameterisation": "pixels"},
    },
    "decorrelation": {
        "decorrelated colours": {"decorrelate": True},
        "plain colours": {"decorrelate": False},
    },
    "augmentation": {
        "none": {"augment": _NONE},
        "flip": {"augment": _NONE | {"flip": 0.5}},
        "crop": {"augment": _NONE | {"crop": True}},
        "noise": {"augment": _NONE | {"noise": 0.5}},
        "flip, crop and noise": {"augment": {"flip": 0.5, "crop": True, "noise": 0.5}},
    },
    "views": {f"{n} view{'s' if n > 1 else ''} a step": {"augmentations": n} for n in (1, 3, 10)},
    "initialisation": {
        "most central image": {"initialisation": "centroid"},
        "noise": {"initialisation": "noise"},
        "zero": {"initialisation": "zero"},
    },
    "centring": {
        "by the real mean": {"centre": "real"},
        "none": {"centre": "none"},
    },
}
"""Group -> choice -> ``distill`` settings. ``temperature_ridge`` is made of the lists in ``benchmark``."""


def choices(settings: Settings) -> dict[str, dict[str, dict[str, Any]]]:
    """The groups that ``benchmark.ablations`` lists, with the choices in each."""
    grid = {
        f"{temperature:g} / {ridge:g}": {"temperature": temperature, "ridge": ridge}
        for temperature in settings.benchmark.temperatures
        for ridge in settings.benchmark.ridges
    }
    return {name: GROUPS.get(name, grid) for name in settings.benchmark.ablations}


def plan_ablations(settings: Settings) -> list[Job]:
    """A job for every distinct choice and seed, with all (group, choice) pairs that it stands for.

    What the base and several groups have in common is made once.
    """
    jobs: dict[str, Job] = {}
    for seed in range(settings.seed, settings.seed + settings.benchmark.seeds):
        for group, listed in choices(settings).items():
            for choice, changes in listed.items():
                chosen = _settings(settings, changes)
                name = f"{BASE}-{sha256_bytes(chosen.model_dump_json().encode())[:8]}"
                key = f"{name} {seed}"
                job = jobs.setdefault(key, Job(name=name, method="clp", settings=chosen, seed=seed, halvings=None))
                jobs[key] = dataclasses.replace(job, choices=(*job.choices, (group, choice)))
    return list(jobs.values())


def _settings(settings: Settings, changes: Mapping[str, Any]) -> DistillSettings:
    base = resolve(BASE, settings.distill).settings
    plain = base.model_dump() | {"images_per_class": settings.benchmark.images_per_class[0]}
    if settings.benchmark.steps is not None:
        plain["steps"] = settings.benchmark.steps
    for key, value in changes.items():
        plain[key] = plain[key] | value if isinstance(value, dict) else value
    return judged_at_the_end(DistillSettings.model_validate(plain))
