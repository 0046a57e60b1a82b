"""Crops and flips on CUDA by the pixels that they touch, instead of by products with banded matrices.

Bilinear sampling meets two rows and two columns a pixel. The way back gathers: every pixel of an image adds up, in the
order of their numbers, the samples that touched it, first along the columns, then along the rows: no atomics, so every
run gives the same bits. Agrees with ``clpdd.functional.resample.crop_matrix`` to float rounding. Needs Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["crop"]


# Triton compiles arguments of any type: the annotations that `no-untyped-def` misses would say nothing.
@triton.jit
def _position(start, extent, index, size_in, size_out):  # type: ignore[no-untyped-def]
    return (start + extent * ((index + 0.5) / size_out)) * size_in - 0.5


@triton.jit
def _first(start, extent, pixel, size_in, size_out):  # type: ignore[no-untyped-def]
    """The first sample that may touch a pixel; one too many does no harm."""
    low = ((pixel - 0.5) / size_in - start) * size_out / extent - 0.5
    high = ((pixel + 1.5) / size_in - start) * size_out / extent - 0.5
    return tl.floor(tl.minimum(low, high)).to(tl.int32)


@triton.jit
def _touches(extent, size_in, size_out):  # type: ignore[no-untyped-def]
    """How many samples may touch a pixel."""
    return (2.0 * size_out / (size_in * tl.abs(extent))).to(tl.int32) + 3


@triton.jit
def _sample_kernel(images, boxes, out, n, h, w, size, C: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    image, row = tl.program_id(1), tl.program_id(0)
    columns = tl.arange(0, B)
    inside = columns < size
    top, left = tl.load(boxes + image), tl.load(boxes + n + image)
    tall, wide = tl.load(boxes + 2 * n + image), tl.load(boxes + 3 * n + image)
    y = tl.minimum(tl.maximum(_position(top, tall, row, h, size), 0.0), h - 1.0)
    x = tl.minimum(tl.maximum(_position(left, wide, columns, w, size), 0.0), w - 1.0)
    above, before = tl.floor(y).to(tl.int32), tl.floor(x).to(tl.int32)
    below, after = tl.minimum(above + 1, h - 1), tl.minimum(before + 1, w - 1)
    down, across = y - above.to(tl.float32), x - before.to(tl.float32)
    for channel in tl.static_range(C):
        start = images + (image.to(tl.int64) * C + channel) * h * w
        one = tl.load(start + above * w + before, mask=inside, other=0.0) * (1 - across)
        one += tl.load(start + above * w + after, mask=inside, other=0.0) * across
        two = tl.load(start + below * w + before, mask=inside, other=0.0) * (1 - across)
        two += tl.load(start + below * w + after, mask=inside, other=0.0) * across
        place = out + ((image.to(tl.int64) * C + channel) * size + row) * size + columns
        tl.store(place, one * (1 - down) + two * down, mask=inside)


@triton.jit
def _rows_kernel(outer, boxes, made, n, h, size, C: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    image, row = tl.program_id(1), tl.program_id(0)
    columns = tl.arange(0, B)
    inside = columns < size
    top, tall = tl.load(boxes + image), tl.load(boxes + 2 * n + image)
    first = _first(top, tall, row, h, size)
    for channel in tl.static_range(C):
        start = outer + (image.to(tl.int64) * C + channel) * size * size
        total = tl.zeros((B,), tl.float32)
        for sample in range(tl.maximum(first, 0), tl.minimum(first + _touches(tall, h, size), size)):
            y = tl.minimum(tl.maximum(_position(top, tall, sample, h, size), 0.0), h - 1.0)
            weight = tl.maximum(1 - tl.abs(y - row.to(tl.float32)), 0.0)
            total += weight * tl.load(start + sample * size + columns, mask=inside, other=0.0)
        tl.store(made + ((image.to(tl.int64) * C + channel) * h + row) * size + columns, total, mask=inside)


@triton.jit
def _columns_kernel(made, boxes, out, n, h, w, size, C: tl.constexpr, B: tl.constexpr):  # type: ignore[no-untyped-def]
    image, row = tl.program_id(1), tl.program_id(0)
    columns = tl.arange(0, B)
    inside = columns < w
    left, wide = tl.load(boxes + n + image), tl.load(boxes + 3 * n + image)
    first = _first(left, wide, columns, w, size)
    for channel in tl.static_range(C):
        start = made + ((image.to(tl.int64) * C + channel) * h + row) * size
        total = tl.zeros((B,), tl.float32)
        for number in range(0, _touches(wide, w, size)):
            sample = first + number
            x = tl.minimum(tl.maximum(_position(left, wide, sample, w, size), 0.0), w - 1.0)
            weight = tl.maximum(1 - tl.abs(x - columns.to(tl.float32)), 0.0)
            there = inside & (sample >= 0) & (sample < size)
            total += tl.where(there, weight, 0.0) * tl.load(start + sample, mask=there, other=0.0)
        tl.store(out + ((image.to(tl.int64) * C + channel) * h + row) * w + columns, total, mask=inside)


def crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Views ``(n, c, size, size)`` of images ``(n, c, h, w)`` float32, differentiable in them.

    Args:
        boxes: ``(4, n)`` float32: top, left, height and width in units of the whole image; a negative width is a flip.
    """
    made: Tensor = _Crop.apply(images, boxes, size)
    return made


class _Crop(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, boxes: Tensor, size: int) -> Tensor:
        images, boxes = images.contiguous(), boxes.contiguous()
        n, c, h, w = images.shape
        context.save_for_backward(boxes)
        context.shape = images.shape
        out = images.new_empty(n, c, size, size)
        _sample_kernel[(size, n)](images, boxes, out, n, h, w, size, C=c, B=triton.next_power_of_2(size))
        return out

    @staticmethod
    def backward(context: Any, *outer: Any) -> Any:
        (boxes,), (n, c, h, w) = context.saved_tensors, context.shape
        gradient, size = outer[0].contiguous(), outer[0].shape[-1]
        made, out = gradient.new_empty(n, c, h, size), gradient.new_empty(n, c, h, w)
        _rows_kernel[(h, n)](gradient, boxes, made, n, h, size, C=c, B=triton.next_power_of_2(size))
        _columns_kernel[(h, n)](made, boxes, out, n, h, w, size, C=c, B=triton.next_power_of_2(w))
        return out, None, None
