r"""Self-attention over short sequences on CUDA, there and back, for heads that stand side by side in one tensor.

Softmax attention by tiles (arXiv 2205.14135) with two differences from torch's own kernels, which were made for long
sequences: queries, keys and values are read from, and their gradients written to, the one tensor ``(b, n, 3, h, d)``
that a transformer's projection makes, so that nothing is stacked; and the way back is two kernels that each own what
they write, without atomics or a float32 copy, so that every run gives the same bits. Needs Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["LONGEST", "attention"]

LONGEST = 512
"""Tokens up to which ``attention`` was measured to be the quicker way."""

_LOG2E = 1.4426950408889634
_TILE, _STRIP = 64, 32  # rows that a program owns, and rows that it meets at once


# Triton compiles arguments of any type: the annotations that `no-untyped-def` misses would say nothing.
@triton.jit
def _forward_kernel(qkv, out, sums, n, scale, H: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    head = tl.program_id(1)
    batch = (head // H).to(tl.int64)
    line = 3 * H * D
    start = qkv + batch * n * line + (head % H) * D
    rows, columns, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    q = tl.load(start + rows[:, None] * line + dims[None, :], mask=rows[:, None] < n, other=0.0)
    largest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    made = tl.zeros((M, D), tl.float32)
    for first in range(0, n, N):
        at = first + columns
        place = start + at[:, None] * line + dims[None, :]
        k = tl.load(place + H * D, mask=at[:, None] < n, other=0.0)
        v = tl.load(place + 2 * H * D, mask=at[:, None] < n, other=0.0)
        s = tl.where(at[None, :] < n, tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        larger = tl.maximum(largest, tl.max(s, 1))
        p = tl.exp2(s - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(p, 1)
        made = made * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        largest = larger
    place = out + batch * n * H * D + (head % H) * D + rows[:, None] * (H * D) + dims[None, :]
    tl.store(place, (made / total[:, None]).to(out.dtype.element_ty), mask=rows[:, None] < n)
    tl.store(sums + head.to(tl.int64) * n + rows, largest + tl.log2(total), mask=rows < n)


@triton.jit
def _query_kernel(  # type: ignore[no-untyped-def]
    qkv,
    out,
    outer,
    sums,
    deltas,
    gradient,
    n,
    scale,
    H: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    head = tl.program_id(1)
    batch = (head // H).to(tl.int64)
    line = 3 * H * D
    start = qkv + batch * n * line + (head % H) * D
    rows, columns, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    inside = rows[:, None] < n
    q = tl.load(start + rows[:, None] * line + dims[None, :], mask=inside, other=0.0)
    place = batch * n * H * D + (head % H) * D + rows[:, None] * (H * D) + dims[None, :]
    o = tl.load(outer + place, mask=inside, other=0.0)
    delta = tl.sum(o.to(tl.float32) * tl.load(out + place, mask=inside, other=0.0).to(tl.float32), 1)
    tl.store(deltas + head.to(tl.int64) * n + rows, delta, mask=rows < n)
    log = tl.load(sums + head.to(tl.int64) * n + rows, mask=rows < n, other=float("inf"))
    made = tl.zeros((M, D), tl.float32)
    for first in range(0, n, N):
        at = first + columns
        other = start + at[:, None] * line + dims[None, :]
        k = tl.load(other + H * D, mask=at[:, None] < n, other=0.0)
        v = tl.load(other + 2 * H * D, mask=at[:, None] < n, other=0.0)
        p = tl.exp2(tl.dot(q, tl.trans(k)) * scale - log[:, None])
        pull = p * (tl.dot(o, tl.trans(v)) - delta[:, None])
        made += tl.dot(pull.to(k.dtype), k)
    own = gradient + batch * n * line + (head % H) * D + rows[:, None] * line + dims[None, :]
    tl.store(own, (made * (scale / 1.4426950408889634)).to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def _key_kernel(  # type: ignore[no-untyped-def]
    qkv, outer, sums, deltas, gradient, n, scale, H: tl.constexpr, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr
):
    head = tl.program_id(1)
    batch = (head // H).to(tl.int64)
    line = 3 * H * D
    start = qkv + batch * n * line + (head % H) * D
    rows, columns, dims = tl.program_id(0) * M + tl.arange(0, M), tl.arange(0, N), tl.arange(0, D)
    inside = rows[:, None] < n
    place = start + rows[:, None] * line + dims[None, :]
    k = tl.load(place + H * D, mask=inside, other=0.0)
    v = tl.load(place + 2 * H * D, mask=inside, other=0.0)
    for_k, for_v = tl.zeros((M, D), tl.float32), tl.zeros((M, D), tl.float32)
    for first in range(0, n, N):
        at = first + columns
        q = tl.load(start + at[:, None] * line + dims[None, :], mask=at[:, None] < n, other=0.0)
        other = batch * n * H * D + (head % H) * D + at[:, None] * (H * D) + dims[None, :]
        o = tl.load(outer + other, mask=at[:, None] < n, other=0.0)
        log = tl.load(sums + head.to(tl.int64) * n + at, mask=at < n, other=float("inf"))
        delta = tl.load(deltas + head.to(tl.int64) * n + at, mask=at < n, other=0.0)
        p = tl.exp2(tl.dot(k, tl.trans(q)) * scale - log[None, :])
        for_v += tl.dot(p.to(o.dtype), o)
        pull = p * (tl.dot(v, tl.trans(o)) - delta[None, :])
        for_k += tl.dot(pull.to(q.dtype), q)
    own = gradient + batch * n * line + (head % H) * D + rows[:, None] * line + dims[None, :]
    tl.store(own + H * D, (for_k * (scale / 1.4426950408889634)).to(gradient.dtype.element_ty), mask=inside)
    tl.store(own + 2 * H * D, for_v.to(gradient.dtype.element_ty), mask=inside)


def _grid(qkv: Tensor) -> tuple[int, int]:
    b, n, _, h, _ = qkv.shape
    return -(-n // _TILE), b * h


def _constants(qkv: Tensor) -> dict[str, int]:
    return {"H": qkv.shape[3], "D": qkv.shape[4], "M": _TILE, "N": _STRIP, "num_warps": 4, "num_stages": 3}


@torch.library.custom_op("clpdd::attention", mutates_args=())
def _attention(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    out = qkv.new_empty(b, n, h, d)
    sums = torch.empty(b, h, n, dtype=torch.float32, device=qkv.device)
    _forward_kernel[_grid(qkv)](qkv, out, sums, n, scale * _LOG2E, **_constants(qkv))
    return out, sums


@_attention.register_fake
def _(qkv: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    b, n, _, h, d = qkv.shape
    return qkv.new_empty(b, n, h, d), qkv.new_empty(b, h, n, dtype=torch.float32)


@torch.library.custom_op("clpdd::attention_backward", mutates_args=())
def _attention_backward(qkv: Tensor, out: Tensor, outer: Tensor, sums: Tensor, scale: float) -> Tensor:
    gradient, deltas, n = torch.empty_like(qkv), torch.empty_like(sums), qkv.shape[1]
    outer = outer.contiguous()
    grid, constants, factor = _grid(qkv), _constants(qkv), scale * _LOG2E
    _query_kernel[grid](qkv, out, outer, sums, deltas, gradient, n, factor, **constants)
    _key_kernel[grid](qkv, outer, sums, deltas, gradient, n, factor, **constants)
    return gradient


@_attention_backward.register_fake
def _(qkv: Tensor, out: Tensor, outer: Tensor, sums: Tensor, scale: float) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.scale = inputs[1]


def _back(ctx: Any, outer: Tensor, _: Any) -> tuple[Tensor, None]:
    qkv, out, sums = ctx.saved_tensors
    return _attention_backward(qkv, out, outer, sums, ctx.scale), None


_attention.register_autograd(_back, setup_context=_keep)


def attention(qkv: Tensor, scale: float) -> Tensor:
    r"""``softmax(scale Q K^T) V`` ``(b, n, h, d)`` of every head.

    Args:
        qkv: queries, keys and values ``(b, n, 3, h, d)``, contiguous, bfloat16 or float16; ``d`` is a power of two, at
            least 16.
        scale: factor of the scores, > 0.
    """
    out: Tensor = _attention(qkv, scale)[0]
    return out
