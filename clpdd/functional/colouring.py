"""Colours and their squashing on CUDA in one reading, there and back. Needs Triton."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["coloured"]

_BLOCK = 1024


# Triton compiles arguments of any type: the annotations that `no-untyped-def` misses would say nothing.
@triton.jit
def _there_kernel(plain, matrix, out, pixels, B: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0) * B + tl.arange(0, B)
    start = tl.program_id(1).to(tl.int64) * 3 * pixels
    inside = places < pixels
    one = tl.load(plain + start + places, mask=inside, other=0.0)
    two = tl.load(plain + start + pixels + places, mask=inside, other=0.0)
    three = tl.load(plain + start + 2 * pixels + places, mask=inside, other=0.0)
    for row in tl.static_range(3):
        mixed = tl.load(matrix + 3 * row) * one + tl.load(matrix + 3 * row + 1) * two
        mixed += tl.load(matrix + 3 * row + 2) * three
        tl.store(out + start + row * pixels + places, 1 / (1 + tl.exp(-mixed)), mask=inside)


@triton.jit
def _back_kernel(made, outer, matrix, out, pixels, B: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0) * B + tl.arange(0, B)
    start = tl.program_id(1).to(tl.int64) * 3 * pixels
    inside = places < pixels
    one = tl.load(made + start + places, mask=inside, other=0.0)
    one = one * (1 - one) * tl.load(outer + start + places, mask=inside, other=0.0)
    two = tl.load(made + start + pixels + places, mask=inside, other=0.0)
    two = two * (1 - two) * tl.load(outer + start + pixels + places, mask=inside, other=0.0)
    three = tl.load(made + start + 2 * pixels + places, mask=inside, other=0.0)
    three = three * (1 - three) * tl.load(outer + start + 2 * pixels + places, mask=inside, other=0.0)
    for column in tl.static_range(3):
        mixed = tl.load(matrix + column) * one + tl.load(matrix + 3 + column) * two
        mixed += tl.load(matrix + 6 + column) * three
        tl.store(out + start + column * pixels + places, mixed, mask=inside)


def coloured(plain: Tensor, matrix: Tensor) -> Tensor:
    """``sigmoid(matrix x)`` of every pixel's colour ``x``, differentiable in the colours.

    Args:
        plain: colours ``(n, 3, h, w)`` float32.
        matrix: ``(3, 3)`` float32.
    """
    made: Tensor = _Coloured.apply(plain, matrix)
    return made


class _Coloured(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, plain: Tensor, matrix: Tensor) -> Tensor:
        plain, matrix = plain.contiguous(), matrix.contiguous()
        out, pixels = torch.empty_like(plain), plain.shape[2] * plain.shape[3]
        _there_kernel[(triton.cdiv(pixels, _BLOCK), len(plain))](plain, matrix, out, pixels, B=_BLOCK)
        context.save_for_backward(out, matrix)
        return out

    @staticmethod
    def backward(context: Any, *outer: Any) -> Any:
        made, matrix = context.saved_tensors
        out, pixels = torch.empty_like(made), made.shape[2] * made.shape[3]
        grid = triton.cdiv(pixels, _BLOCK), len(made)
        _back_kernel[grid](made, outer[0].contiguous(), matrix, out, pixels, B=_BLOCK)
        return out, None
