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

__all__ = ["ASSUMED", "Cost", "Pass", "described", "encoder_pass", "estimate", "whole_pass"]

ASSUMED = 20e12
"""Multiply-accumulates a second, about 1,100 images of a ViT-B/16 at 224 pixels: assumed of a data-centre GPU of the
A100 class, not measured."""

_BATCH = 96  # views a pass that memory is told for where the settings leave them to the machine


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


def estimate(settings: Settings, macs_per_second: float = ASSUMED) -> Cost | None:
    """The cost of the whole pipeline, or ``None`` for datasets whose size the catalogue does not know."""
    known, limits = entry(settings.dataset.name), settings.dataset.max_per_class
    if not known.train:
        return None
    train = known.train if limits.train is None else min(known.train, limits.train * known.classes)
    test = known.test if limits.test is None else min(known.test, limits.test * known.classes)
    images, judged = train + test, settings.evaluate
    passes: dict[str, int] = {"cache": 0, "distill": 0, "evaluate": 0}
    seconds: dict[str, float] = dict.fromkeys(passes, 0.0)
    memory = 0
    for name in settings.encoders:
        one = whole_pass(settings, name)
        own = {"cache": images, "distill": 0, "evaluate": 0}
        for variant in map(settings.variant, settings.methods):
            method, distill = variant.method, variant.settings
            made = distill.images(known.classes)
            views = made * distill.augmentations
            own["distill"] += METHODS[method].passes * views * distill.steps
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
    stages = ", ".join(f"{stage} {_time(seconds)}" for stage, seconds in cost.seconds.items())
    return f"{cost.images:,} images; {stages}; memory {cost.memory / 2**30:.1f} GiB"


def _time(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )
