"""A configuration walked through end to end on a handful of random images: shapes, one step, speed, expected cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..catalogue.datasets import PLACED_BY_SPLIT
from ..catalogue.methods import METHODS
from ..config.kernels import KernelSettings
from ..config.settings import Settings
from ..datasets.build import choose, index_arrays, open_source
from ..datasets.listing import BadImages
from ..encoders.calling import encode, encoder_call
from ..encoders.encoder import Encoder
from ..encoders.loading import load_encoder, resolve_device
from ..errors import DataError
from ..storage.layout import SPLITS
from ..workspace import Workspace
from .cost import Cost, Size, estimate, published, whole_pass

__all__ = ["Walk", "dry_run"]

_CLASSES = 2
_WORTH_SAYING = 1.2  # times as quick


@dataclass(frozen=True)
class Walk:
    """What one encoder did.

    Attributes:
        encoder: its name.
        size, dim: side of its input in pixels, features per image.
        made: method -> shape of the distilled images.
        images_per_second: forward, in batches of ``batch``, on this machine.
        batch: images of a pass.
    """

    encoder: str
    size: int
    dim: int
    made: dict[str, tuple[int, ...]]
    images_per_second: float
    batch: int


def dry_run(
    settings: Settings, folder: Path, *, arguments: dict[str, Any] | None = None, tell: Callable[[str], object] = print
) -> tuple[list[Walk], Cost | None]:
    """Index, cache, kernels and one step of every optimising method, for every encoder, on random weights and images.

    Everything runs through the real stages with the configuration's own encoders at their own image size and its own
    distillation settings, but for two classes, one image per class, one step and one view: what is wrong with a
    configuration shows here, before anything is downloaded.

    Args:
        folder: takes the artifacts.
        arguments: further ones for timm, e.g. ``{"depth": 1}`` for one block of a transformer.
        tell: takes a line for each thing that went well.

    Returns:
        A walk for each encoder, and the cost of the true run at the speed measured (``None`` where the dataset's size
        is neither known nor to be counted).

    Raises:
        SettingsError, and whatever the stages raise.
    """
    walks, total, seconds = [], 0.0, 0.0
    generator = np.random.default_rng(settings.seed)
    for name in settings.encoders:
        encoder = load_encoder(
            **settings.encoder_arguments(name),
            device=resolve_device(settings.runtime.device),
            untrained=settings.seed,
            arguments=arguments,
        )
        tell(f"{name}: {encoder.shape[0]} x {encoder.shape[1]} pixels -> {encoder.dim} features")
        home = folder / name
        shape = {"train": 2, "validation": 1, "test": 1}
        splits = {
            split: (
                generator.integers(0, 256, (count * _CLASSES, 64, 64, 3), dtype=np.uint8),
                np.arange(count * _CLASSES) % _CLASSES,
            )
            for split, count in shape.items()
        }
        index_arrays(splits, ["one", "other"], home / "index", seed=settings.seed)
        kernels = KernelSettings(nearest=2)
        # how large features are in the end, random weights do not tell
        cache = settings.cache.model_copy(update={"batch_size": 2, "dtype": "float32"})
        work = Workspace(home, encoder, cache=cache, kernels=kernels, seed=settings.seed)
        made = {}
        for method in settings.methods:
            variant = settings.variant(method)
            if METHODS[variant.method].optimises:
                small = {"steps": 1, "images_per_class": 1, "augmentations": 1}
                found = work.distill(variant.method, variant.settings.model_copy(update=small))
                made[method] = tuple(found.images.shape)
                tell(f"{name}: one step of {method} -> images {made[method]}")
        macs = whole_pass(settings, name).macs
        walks.append(Walk(name, encoder.size, encoder.dim, made, *_speed(encoder, macs, settings.cache.precision)))
        total, seconds = total + macs, seconds + 1 / walks[-1].images_per_second
        tell(f"{name}: {walks[-1].images_per_second:.1f} images a second forward, untrained, on this machine")
        if encoder.device.type == "cpu" and settings.precision == "auto":
            ratio = _bfloat16_gain(encoder, walks[-1].batch)
            if ratio >= _WORTH_SAYING:
                tell(
                    f"{name}: in bfloat16 forward and back are {ratio:.1f} times as quick on this machine: "
                    f"precision: bfloat16 has all stages compute so"
                )
    return walks, estimate(settings, total / seconds, _counted(settings, tell))


def _counted(settings: Settings, tell: Callable[[str], object]) -> Size | None:
    """The size of a dataset that the catalogue does not know and that lies on this machine; no image is opened."""
    if published(settings) is not None or settings.dataset.name not in PLACED_BY_SPLIT:
        return None
    try:
        source = open_source(settings.dataset, Path(), BadImages(skip=True))
        rows = {split: len(chosen) for split, (_, chosen) in choose(source, settings.dataset, settings.seed).items()}
    except DataError as error:
        tell(f"images are not counted: {error}")
        return None
    counts = ", ".join(f"{rows[split]:,} {split}" for split in SPLITS)
    tell(f"{len(source.class_names):,} classes, {sum(rows.values()):,} images: {counts}")
    return Size(len(source.class_names), rows["train"] + rows["validation"], rows["test"])


def _speed(encoder: Encoder, macs: float, precision: str) -> tuple[float, int]:
    """Images a second, and the batch: on a CPU as many as one image of a ViT-B takes, 64 on a device."""
    batch = max(1, min(64, int(17e9 / macs))) if encoder.device.type == "cpu" else 64
    images = torch.rand(batch, 3, *encoder.shape)
    encode(encoder, images, precision=precision)
    begun, passes = time.perf_counter(), 0
    while passes < 3 or (time.perf_counter() - begun < 0.5 and passes < 50):
        encode(encoder, images, precision=precision).sum().item()
        passes += 1
    return batch * passes / (time.perf_counter() - begun), batch


def _bfloat16_gain(encoder: Encoder, batch: int) -> float:
    """How many times as quick forward and back are in bfloat16 as in float32; 0 where the model cannot do it."""
    pixels = torch.rand(batch, 3, *encoder.shape, device=encoder.device, requires_grad=True)
    least = {"float32": math.inf, "bfloat16": math.inf}
    for trial in range(4):  # in turns; the first of each warms up
        for precision in least:
            begun = time.perf_counter()
            try:
                torch.autograd.grad(encoder_call(encoder, precision)(pixels).square().sum(), pixels)
            except RuntimeError:  # a kernel that knows no bfloat16
                return 0.0
            if trial:
                least[precision] = min(least[precision], time.perf_counter() - begun)
    return least["float32"] / least["bfloat16"]
