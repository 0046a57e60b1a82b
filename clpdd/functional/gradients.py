"""Gradients laid out in memory as what they are gradients of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gradients"]


def gradients(
    output: Tensor, inputs: Sequence[Tensor], outer: Tensor | None = None, *, retain: bool = False
) -> list[Tensor]:
    """Gradients of ``output`` with respect to ``inputs``, each with the strides of its input.

    ``torch.autograd.grad`` gives whatever strides the way back produced (a permutation leaves its own). Fused and
    foreach optimisers take parameters and gradients of the same strides alone: on CUDA they refuse others, on CPUs they
    update the wrong elements.

    Args:
        outer: gradient of the result with respect to ``output``, of its shape; ``None`` for a scalar.
        retain: whether the graph is kept for a further call.
    """
    found = torch.autograd.grad(output, list(inputs), outer, retain_graph=retain or None)
    return [_laid_out(one, as_this) for one, as_this in zip(found, inputs, strict=True)]


def _laid_out(gradient: Tensor, like: Tensor) -> Tensor:
    if gradient.stride() == like.stride():
        return gradient
    return torch.empty_strided(like.shape, like.stride(), dtype=gradient.dtype, device=gradient.device).copy_(gradient)
