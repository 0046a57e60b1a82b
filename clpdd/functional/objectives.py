"""Outer losses: how the probe induced by the synthetic images is judged on real, cached features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .parts import WHOLE, Part, weighted
from .ridge import centred_one_hot

__all__ = ["attach", "blocked_gradient", "outer_loss"]


def outer_loss(
    W: Tensor, Z: Tensor, labels: Tensor, objective: str, temperature: float, parts: Sequence[Part] = WHOLE
) -> Tensor:
    """Mean loss of the probe ``W (d, C)`` on real features ``Z (b, d)`` with ``labels (b,)`` in ``[0, C)``.

    - ``cross_entropy``: softmax cross-entropy of ``Z W / temperature`` (the paper's objective; the columns of ``W``
      act as class anchors in feature space);
    - ``cosine``: the same with the rows of ``Z`` and the columns of ``W`` scaled to length one;
    - ``mse``: mean over samples of the squared distance to the centred one-hot target (the paper's ablation).

    ``temperature`` is in ``(0, inf)`` and has no effect on ``mse``. Of several ``parts`` each has its own columns of
    ``Z`` and rows of ``W``, a probe of its own, and their losses are averaged by the shares. Raises ``ValueError``
    for another name.
    """
    return weighted(parts, lambda own: _loss(W[own], Z[:, own], labels, objective, temperature))


def _loss(W: Tensor, Z: Tensor, labels: Tensor, objective: str, temperature: float) -> Tensor:
    if objective == "cross_entropy":
        return F.cross_entropy(_product(Z, W / temperature), labels)
    if objective == "cosine":
        return F.cross_entropy(_product(F.normalize(Z, dim=1), F.normalize(W, dim=0) / temperature), labels)
    if objective == "mse":
        return (_product(Z, W) - centred_one_hot(labels, W.shape[1])).square().sum(1).mean()
    raise ValueError(f"objective is {objective!r}; it must be cross_entropy, cosine or mse")


def _product(Z: Tensor, W: Tensor) -> Tensor:
    """``Z W``; with few classes a CPU multiplies by rows of weights 2 to 3 times as fast, there and back."""
    return F.linear(Z, W.T.contiguous())


def blocked_gradient(
    W: Tensor,
    blocks: Iterable[tuple[Tensor, Tensor]],
    total: int,
    objective: str,
    temperature: float,
    parts: Sequence[Part] = WHOLE,
) -> tuple[Tensor, Tensor]:
    """``outer_loss`` over features that come in ``blocks`` ``((b, d), (b,))``, and its gradient ``(d, C)`` in ``W``.

    Memory is that of one block, however many rows there are. Both are sums over the blocks divided by ``total`` rows,
    so that parts of a set which are summed elsewhere add up to the mean over the whole.
    """
    leaf = W.detach().requires_grad_()
    value, gradient = W.new_zeros(()), torch.zeros_like(W)
    for Z, labels in blocks:
        with torch.enable_grad():
            part = outer_loss(leaf, Z, labels, objective, temperature, parts) * (len(labels) / total)
        gradient += torch.autograd.grad(part, leaf)[0]
        value += part.detach()
    return value, gradient


def attach(W: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """``value``, a scalar, as a function of ``W`` whose gradient was taken already."""
    joined: Tensor = _Attached.apply(W, value, gradient)
    return joined


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, W: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        context.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(context: Any, *outer: Any) -> Any:
        (gradient,) = context.saved_tensors
        return outer[0] * gradient, None, None
