"""Bilinear resampling as two small matrix products.

Bilinear interpolation is separable: ``out = R_y image R_x^T`` with one banded matrix per axis. Written so, resizing
and cropping agree with ``F.interpolate`` and ``F.grid_sample`` to float tolerance, have an exact transpose for a
backward pass, and are deterministic on every device (the scatter-adds of the built-in backward passes on CUDA are not).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["crop_matrix", "resize", "resize_matrix", "resize_sum", "sandwich"]


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


def resize(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Images ``(..., h, w)`` bilinearly resized to ``size``, a side or (height, width); unchanged when they have it."""
    height, width = images.shape[-2:]
    tall, wide = size if isinstance(size, tuple) else (size, size)
    if height != tall:
        images = resize_matrix(height, tall, images.device, images.dtype) @ images
    if width != wide:
        images = images @ resize_matrix(width, wide, images.device, images.dtype).T
    return images


def resize_sum(levels: Sequence[Tensor], size: int) -> Tensor:
    """The sum of square levels ``(n, c, r, r)`` resized to ``(n, c, size, size)``, in two products for all together.

    Of levels smaller than ``size`` but the last, which may have it. Equal to adding what ``resize`` gives but for
    rounding; contiguous gradients.
    """
    n, c = levels[0].shape[:2]
    small = [level for level in levels if level.shape[-1] != size]
    whole = [level for level in levels if level.shape[-1] == size]
    if not small:
        return whole[0]
    bands = [resize_matrix(level.shape[-1], size, level.device, level.dtype) for level in small]
    tall = torch.cat([level @ band.T for level, band in zip(small, bands, strict=True)], -2).flatten(0, 1)
    wide = torch.cat(bands, 1).expand(n * c, -1, -1)
    total = torch.baddbmm(whole[0].flatten(0, 1), wide, tall) if whole else torch.bmm(wide, tall)
    return total.view(n, c, size, size)


def sandwich(rows: Tensor, images: Tensor, columns: Tensor) -> Tensor:
    """``rows image columns^T`` ``(n, c, s, t)`` of ``(n, c, h, w)``, ``rows (n, s, h)`` and ``columns (n, t, w)``.

    On CUDA in TensorFloat-32, there and back: about 5e-4 of relative error. Differentiable in the images alone.
    """
    made: Tensor = _Sandwich.apply(rows, images, columns)
    return made


class _Sandwich(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, images: Tensor, columns: Tensor) -> Tensor:
        context.save_for_backward(rows, columns)
        with _tensor_float():
            return rows[:, None] @ (images @ columns[:, None].mT)

    @staticmethod
    def backward(context: Any, *outer: Any) -> Any:
        rows, columns = context.saved_tensors
        with _tensor_float():
            return None, rows[:, None].mT @ (outer[0] @ columns[:, None]), None


@contextlib.contextmanager
def _tensor_float() -> Iterator[None]:
    """Let CUDA's float32 products use TensorFloat-32 in the block."""
    settings: Any = torch.backends.cuda.matmul
    name, on = ("fp32_precision", "tf32") if hasattr(settings, "fp32_precision") else ("allow_tf32", True)
    before = getattr(settings, name)
    setattr(settings, name, on)
    try:
        yield
    finally:
        setattr(settings, name, before)
