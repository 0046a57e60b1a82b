"""Differentiable siamese augmentation (DSA): random flip, resized crop and noise, per image.

A flip is a crop that runs backwards, so flip and crop together are two small matrix products per image
(``clpdd.resample``): cheap, exactly differentiable, and deterministic on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import AugmentSettings
from .resample import crop_matrix, resize

__all__ = ["augment"]


def augment(images: Tensor, size: int, settings: AugmentSettings, generator: torch.Generator) -> Tensor:
    """One augmented view of every image.

    Args:
        images: ``(n, 3, h, w)`` in [0, 1]; gradients flow back to it.
        size: side of the views in pixels.
        settings: which pieces are on, and their ranges.
        generator: a CPU generator. All choices are drawn there, so that they are the same on every device.

    Returns:
        ``(n, 3, size, size)``. Values leave [0, 1] where noise is added.
    """
    n, _, height, width = images.shape
    device, dtype = images.device, images.dtype
    if settings.crop or settings.flip:
        top, left, tall, wide = _boxes(n, settings, generator)
        flipped = torch.rand(n, generator=generator) < settings.flip
        left, wide = torch.where(flipped, left + wide, left), torch.where(flipped, -wide, wide)
        rows = crop_matrix(top.to(device, dtype), tall.to(device, dtype), height, size)
        columns = crop_matrix(left.to(device, dtype), wide.to(device, dtype), width, size)
        views = rows[:, None] @ images @ columns[:, None].mT
    else:
        views = resize(images, size)
    if settings.noise:
        noisy = (torch.rand(n, generator=generator) < settings.noise).to(device, dtype)
        noise = torch.randn(views.shape, generator=generator).to(device, dtype)
        views = views + noisy[:, None, None, None] * (settings.noise_mean + settings.noise_std * noise)
    return views


def _boxes(n: int, settings: AugmentSettings, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random crops as ``top, left, height, width``, each ``(n,)`` in units of the whole image.

    Area uniform, aspect log-uniform; a side longer than the image is cut to it, which keeps the area's range instead
    of drawing again.
    """
    if not settings.crop:
        zero, one = torch.zeros(n), torch.ones(n)
        return zero, zero, one, one
    area = torch.empty(n).uniform_(*settings.crop_area, generator=generator)
    low, high = (math.log(side) for side in settings.crop_aspect)
    aspect = torch.empty(n).uniform_(low, high, generator=generator).exp()
    wide, tall = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    top = torch.rand(n, generator=generator) * (1 - tall)
    left = torch.rand(n, generator=generator) * (1 - wide)
    return top, left, tall, wide
