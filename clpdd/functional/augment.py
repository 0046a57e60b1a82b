"""Differentiable siamese augmentation (DSA): random flip, resized crop and noise, per image.

A flip is a crop that runs backwards, so flip and crop together are two small matrix products per image
(``clpdd.functional.resample``): cheap, exactly differentiable, and deterministic on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .resample import crop_matrix, resize, sandwich

try:
    from .cropping import crop as _crop
except ImportError:  # no Triton
    _crop = None  # type: ignore[assignment]  # where it is a function, its type is that

__all__ = ["Augmentation", "add_noise", "augment", "crop_and_flip", "draw"]


class Augmentation(Protocol):
    """Which pieces are on, and their ranges; ``clpdd.config.augment.AugmentSettings`` says what they mean."""

    @property
    def flip(self) -> float: ...
    @property
    def crop(self) -> bool: ...
    @property
    def crop_area(self) -> Sequence[float]: ...
    @property
    def crop_aspect(self) -> Sequence[float]: ...
    @property
    def noise(self) -> float: ...
    @property
    def noise_mean(self) -> float: ...
    @property
    def noise_std(self) -> float: ...


def draw(n: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """The random choices of one view of ``n`` images: ``(5, n)`` float32 on the CPU.

    Rows are the crop's top, left, height and width in units of the whole image (a negative width is a flip) and
    whether noise is added (0 or 1).
    """
    top, left, tall, wide = _boxes(n, settings, generator)
    if settings.crop or settings.flip:
        flipped = torch.rand(n, generator=generator) < settings.flip
        left, wide = torch.where(flipped, left + wide, left), torch.where(flipped, -wide, wide)
    noisy = torch.rand(n, generator=generator) < settings.noise if settings.noise else torch.zeros(n)
    return torch.stack([top, left, tall, wide, noisy.float()])


def crop_and_flip(images: Tensor, size: int, settings: Augmentation, choices: Tensor, *, rough: bool = False) -> Tensor:
    """Views ``(n, 3, size, size)`` of images ``(n, 3, h, w)`` by ``choices (5, n)`` as ``draw`` makes them.

    ``rough`` takes the quickest way on CUDA, which rounds otherwise; without Triton that is a product in
    TensorFloat-32.
    """
    if not (settings.crop or settings.flip):
        return resize(images, size)
    height, width = images.shape[-2:]
    if rough and _crop is not None and images.is_cuda:
        return _crop(images, choices[:4].to(images.device), size)
    top, left, tall, wide, _ = choices.to(images.device, images.dtype)
    rows = crop_matrix(top, tall, height, size)
    columns = crop_matrix(left, wide, width, size)
    if rough:
        return sandwich(rows, images, columns)
    return rows[:, None] @ images @ columns[:, None].mT


def add_noise(views: Tensor, settings: Augmentation, choices: Tensor, noise: Tensor) -> Tensor:
    """``views`` with standard normal ``noise`` of their shape, scaled, on those images that ``choices`` says."""
    hit = choices[4].to(views.device, views.dtype)[:, None, None, None]
    return views + hit * (settings.noise_mean + settings.noise_std * noise.to(views.device, views.dtype))


def augment(images: Tensor, size: int, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """One augmented view of every image.

    Args:
        images: ``(n, 3, h, w)`` in [0, 1]; gradients flow back to it.
        size: side of the views in pixels.
        settings: which pieces are on, and their ranges.
        generator: a CPU generator. All choices are drawn there, so that they are the same on every device.

    Returns:
        ``(n, 3, size, size)``. Values leave [0, 1] where noise is added.
    """
    choices = draw(len(images), settings, generator)
    views = crop_and_flip(images, size, settings, choices)
    if settings.noise:
        views = add_noise(views, settings, choices, torch.randn(views.shape, generator=generator))
    return views


def _boxes(n: int, settings: Augmentation, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random crops as ``top, left, height, width``, each ``(n,)`` in units of the whole image.

    Area uniform, aspect log-uniform; a side longer than the image is cut to it, which keeps the area's range instead
    of drawing again.
    """
    if not settings.crop:
        zero, one = torch.zeros(n), torch.ones(n)
        return zero, zero, one, one
    area = torch.empty(n).uniform_(settings.crop_area[0], settings.crop_area[1], generator=generator)
    low, high = (math.log(side) for side in settings.crop_aspect)
    aspect = torch.empty(n).uniform_(low, high, generator=generator).exp()
    wide, tall = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    top = torch.rand(n, generator=generator) * (1 - tall)
    left = torch.rand(n, generator=generator) * (1 - wide)
    return top, left, tall, wide
