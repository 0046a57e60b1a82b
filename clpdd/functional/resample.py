"""Bilinear resampling as two small matrix products.

Bilinear interpolation is separable: ``out = R_y image R_x^T`` with one banded matrix per axis. Written so, resizing
and cropping agree with ``F.interpolate`` and ``F.grid_sample`` to float tolerance, have an exact transpose for a
backward pass, and are deterministic on every device (the scatter-adds of the built-in backward passes on CUDA are not).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["crop_matrix", "resize", "resize_matrix"]


def crop_matrix(start: Tensor, extent: Tensor, size_in: int, size_out: int) -> Tensor:
    """Rows that sample ``size_out`` points evenly from ``[start, start + extent]`` of an axis of ``size_in`` pixels.

    Args:
        start, extent: ``(b,)`` in units of the whole axis; a negative ``extent`` runs backwards (a flip).
        size_in, size_out: pixels before and after.

    Returns:
        ``(b, size_out, size_in)``, each row with non-negative weights that sum to one. Samples beyond the border take
        the border pixel, as ``F.interpolate`` does.
    """
    centres = (torch.arange(size_out, device=start.device, dtype=start.dtype) + 0.5) / size_out
    position = (start[:, None] + extent[:, None] * centres) * size_in - 0.5
    position = position.clamp(0, size_in - 1)
    pixels = torch.arange(size_in, device=start.device, dtype=start.dtype)
    return (1 - (position[:, :, None] - pixels).abs()).clamp_min(0)


@lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """``(size_out, size_in)`` matrix that resizes an axis bilinearly (half-pixel centres, no antialiasing)."""
    with torch.inference_mode(False):  # it is kept, and may next be asked for where gradients are taken
        whole = torch.ones(1, dtype=torch.float64)
        return crop_matrix(whole * 0, whole, size_in, size_out)[0].to(device, dtype)


def resize(images: Tensor, size: int) -> Tensor:
    """Images ``(..., h, w)`` bilinearly resized to ``(..., size, size)``; unchanged when they have that size."""
    height, width = images.shape[-2:]
    if height != size:
        images = resize_matrix(height, size, images.device, images.dtype) @ images
    if width != size:
        images = images @ resize_matrix(width, size, images.device, images.dtype).T
    return images
