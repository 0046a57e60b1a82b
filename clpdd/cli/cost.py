"""What a configuration will take: counted passes through the encoder, times what one pass costs.

Multiply-accumulates and activations are counted on the architecture itself, built without memory (torch's ``meta``
device), so any timm model at any image size has them. Seconds need a speed: measured (``clpdd dry-run`` measures this
machine's) or assumed (``ASSUMED``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..catalogue.datasets import entry
from ..catalogue.methods import METHODS
from ..config.settings import Settings
from ..encoders.building import REFUSALS, said
from ..encoders.names import check_architecture
from ..encoders.shapes import input_shape
from ..errors import SettingsError

__all__ = ["ASSUMED", "Cost", "Pass", "described", "encoder_pass", "estimate", "whole_pass"]

ASSUMED = 20e12
"""Multiply-accumulates a second, about 1,100 images of a ViT-B/16 at 224 pixels: assumed of a data-centre GPU of the
A100 class, not measured."""

_BATCH = 96  # views a pass that memory is told for where the settings leave them to the machine


@dataclass(frozen=True)
class Pass:
    """One image through an encoder.

    Attributes:
        macs: multiply-accumulates of a forward pass; back into the pixels costs as many again.
        activations: bytes that are kept for the way back.
        weights: bytes of the parameters.
        dim: features per image.
        size: side of the input in pixels, of one that is not square the longer one.
    """

    macs: float
    activations: int
    weights: int
    dim: int
    size: int


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
    """Count one image's pass. Raises ``SettingsError`` for an unknown architecture, or a size that it cannot take."""
    check_architecture(architecture)
    sized: list[dict[str, Any]] = [] if image_size is None else [{"img_size": image_size}]
    refused: Exception | None = None
    # without memory; for models that compute with values while they are built, with it
    for device, arguments in ((device, own) for device in ("meta", "cpu") for own in (*sized, {})):
        try:
            return _counted(architecture, arguments, image_size, device)
        except REFUSALS as error:
            refused = refused or error
    assert refused is not None
    raise SettingsError(f"{architecture} cannot be used at image size {image_size}: {said(refused)}") from refused


def _counted(architecture: str, arguments: dict[str, Any], image_size: int | None, device: str) -> Pass:
    with torch.device(device):
        model = timm.create_model(architecture, num_classes=0, **arguments).eval().requires_grad_(False)
        shape = input_shape(model) if image_size is None else (image_size, image_size)
        image = torch.empty(1, 3, *shape, requires_grad=True)
    own = {_storage(p) for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(saved: Tensor) -> Tensor:
        if _storage(saved) not in own:
            kept[_storage(saved)] = saved
        return saved

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        features = model(image)
    weights = sum(p.numel() * 4 for p in model.parameters())
    activations = sum(saved.untyped_storage().nbytes() for saved in kept.values())
    return Pass(counter.get_total_flops() / 2, activations, weights, int(features.shape[-1]), max(shape))


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


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


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
