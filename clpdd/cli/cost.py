"""What a configuration will take: counted passes through the encoder, times what one pass costs.

Multiply-accumulates and activations are counted on the architecture itself, so any timm model at any image size has
them; those of the presets' encoders are known (``catalogue.passes``). Seconds need a speed: measured (``clpdd
dry-run`` measures this machine's) or assumed (``ASSUMED``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from ..catalogue.datasets import entry
from ..catalogue.methods import METHODS
from ..catalogue.passes import COUNTED, Pass
from ..config.settings import Settings

__all__ = [
    "ASSUMED",
    "ASSUMED_IN_WORDS",
    "Cost",
    "Pass",
    "Size",
    "described",
    "duration",
    "encoder_pass",
    "estimate",
    "published",
    "whole_pass",
]

ASSUMED = 20e12
"""Multiply-accumulates a second, about 1,100 images of a ViT-B/16 at 224 pixels: assumed of a data-centre GPU of the
A100 class, not measured."""

ASSUMED_IN_WORDS = (
    f"{ASSUMED / 1e12:.0f} T multiply-accumulates a second, as a GPU of the A100 class does; `clpdd dry-run` measures "
    f"this machine"
)

_BATCH = 96  # views a pass that memory is told for where the settings leave them to the machine


@dataclass(frozen=True)
class Size:
    """How large a dataset is.

    Attributes:
        classes: how many there are.
        train: images to train and to validate on.
        test: images to judge on.
    """

    classes: int
    train: int
    test: int


@dataclass(frozen=True)
class Cost:
    """Estimates for one configuration.

    Attributes:
        images: real images that are encoded once.
        passes: stage -> forward passes through the encoders it takes, those back counted in.
        seconds: stage -> seconds.
        memory: bytes at the peak of distilling: weights, activations of one pass, real features, images and their
            Adam moments.
    """

    images: int
    passes: Mapping[str, int]
    seconds: Mapping[str, float]
    memory: int


@lru_cache(maxsize=64)
def encoder_pass(architecture: str, image_size: int | None = None) -> Pass:
    """One image's pass, looked up or counted. Raises ``SettingsError`` for an unknown architecture."""
    known = COUNTED.get((architecture, image_size))
    if known is not None:
        return known
    from .counting import count_pass  # torch and timm take seconds to import

    return count_pass(architecture, image_size)


def whole_pass(settings: Settings, encoder: str) -> Pass:
    """The same of one of ``encoders``: of a joint one its members' together. Raises ``SettingsError``."""
    passes = [encoder_pass(own.model or name, own.image_size) for name, own in settings.members(encoder).items()]
    return Pass(
        sum(one.macs for one in passes),
        sum(one.activations for one in passes),
        sum(one.weights for one in passes),
        sum(one.dim for one in passes),
        max(one.size for one in passes),
    )


def published(settings: Settings) -> Size | None:
    """The size of a dataset that the catalogue knows, within ``max_per_class``; ``None`` of any other."""
    known, limits = entry(settings.dataset.name), settings.dataset.max_per_class
    if not known.train:
        return None
    train = known.train if limits.train is None else min(known.train, limits.train * known.classes)
    test = known.test if limits.test is None else min(known.test, limits.test * known.classes)
    return Size(known.classes, train, test)


def estimate(settings: Settings, macs_per_second: float = ASSUMED, size: Size | None = None) -> Cost | None:
    """The cost of the whole pipeline, or ``None`` where nobody knows how large the dataset is.

    Args:
        size: as counted; ``None`` takes the one published.
    """
    size = size or published(settings)
    if size is None:
        return None
    train, images, judged = size.train, size.train + size.test, settings.evaluate
    passes: dict[str, int] = {"cache": 0, "distill": 0, "evaluate": 0}
    seconds: dict[str, float] = dict.fromkeys(passes, 0.0)
    memory = 0
    for name in settings.encoders:
        one = whole_pass(settings, name)
        own = {"cache": images, "distill": 0, "evaluate": 0}
        for variant in map(settings.variant, settings.methods):
            method, distill = variant.method, variant.settings
            made = distill.images(size.classes)
            views = made * distill.augmentations
            searching = 0 if "temperature" in METHODS[method].unused else distill.trial_steps
            own["distill"] += METHODS[method].passes * views * (distill.steps + searching)
            draws = distill.random_draws if method == "random" else 1
            if method != "full":
                own["evaluate"] += (
                    made * draws * judged.seeds * (judged.views or judged.epochs) * len(settings.encoders)
                )
            if METHODS[method].optimises:
                side = distill.image_size or one.size
                state = 4 * made * 3 * side**2 * 4 // 3 * 3  # levels of a pyramid, and two moments of each
                work = one.activations * min(views, distill.encoder_batch or _BATCH)
                memory = max(memory, one.weights + work + state + 2 * one.dim * train)
        for stage, count in own.items():
            passes[stage] += count
            seconds[stage] += count * one.macs / macs_per_second
    return Cost(images, passes, seconds, memory)


def described(cost: Cost | None) -> str:
    """Images, time and memory in words."""
    if cost is None:
        return "a dataset of unknown size"
    stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in cost.seconds.items())
    return f"{cost.images:,} images; {stages}; memory {cost.memory / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever fits."""
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
        if seconds >= 1
        else "<1 s"
    )
