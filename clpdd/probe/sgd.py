"""The field's protocol: softmax regression on raw features by Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional.adam import adam_update
from .linear import Probes
from .views import Stream

__all__ = ["BATCH", "Teacher", "fit_sgd"]

BATCH = 100
"""Rows of a batch, where there are so many."""


@dataclass(frozen=True)
class Teacher:
    r"""Distillation (Hinton et al., arXiv 1503.02531): half the loss is a teacher's, at a temperature.

    .. math:: (1 - s) \, \mathrm{CE}(y, p_1) + s \, T^2 \, \mathrm{KL}(q_T \,\|\, p_T)

    with the probe's probabilities :math:`p` and the teacher's :math:`q`.

    Attributes:
        probabilities: (epoch, rows) -> ``(P, b, C)``, :math:`q_T` of the views that the probes see; rows as in
            ``fit_sgd``.
        temperature: ``T``.
        share: ``s`` in [0, 1].
    """

    probabilities: Callable[[int, Tensor | None], Tensor]
    temperature: float = 4.0
    share: float = 0.5


def fit_sgd(
    features: Callable[[int, Tensor | None], Tensor],
    labels: Tensor,
    classes: int,
    streams: Sequence[Stream],
    *,
    epochs: int,
    learning_rate: float,
    batch: int = BATCH,
    teacher: Teacher | None = None,
    tick: Callable[[], object] = lambda: None,
) -> Probes:
    """The field's protocol: softmax regression on raw features by Adam, cosine to zero, no weight decay.

    Equivalent to a ``torch.nn.Linear(d, C)`` trained by ``torch.optim.Adam`` with ``CosineAnnealingLR`` stepped once
    an epoch, for each probe apart. The gradient of the cross-entropy of a linear layer is written out.

    Args:
        features: (epoch, rows) -> ``(P, b, d)`` float32: this epoch's features of the images ``rows (P, b)``, one set
            for each probe; rows ``None`` asks for all ``n``, in order. ``clpdd.probe.views`` has two of the kind.
        labels: classes ``(P, n)`` int64 in ``[0, classes)``, or probabilities of them ``(P, n, C)``.
        streams: ``P`` sources of random numbers, for the initial weights and the order of the rows.
        learning_rate: per 256 rows of a batch; ``learning_rate * min(batch, n) / 256`` is used.
        batch: rows of a batch; the last, partial batch of an epoch is kept.
        teacher: whose predictions are half of what is learned; ``None``: the labels are all.
        tick: called once an epoch; it may raise to stop.

    Raises:
        NumericalError: the weights left the finite numbers.
    """
    count = labels.shape[1]
    size = min(batch, count)
    first_epoch = features(0, None)
    layers = _Layers(*_initial(streams, first_epoch.shape[-1], classes, first_epoch.device))
    labels = labels.to(first_epoch.device)
    del first_epoch
    peak = learning_rate * size / 256
    for epoch in range(epochs):
        rate = peak * (1 + math.cos(math.pi * epoch / epochs)) / 2
        order = _order(streams, count, size, epoch, labels.device)
        for first in range(0, count, size):
            rows = None if order is None else order[:, first : first + size]  # (P, b)
            X, y = features(epoch, rows), labels if rows is None else _pick(labels, rows)
            layers.step(X, y, rate, teacher, None if teacher is None else teacher.probabilities(epoch, rows))
        tick()
    return Probes(layers.weights.mT.contiguous(), layers.bias)


def _pick(labels: Tensor, rows: Tensor) -> Tensor:
    """Rows ``(P, b)`` of labels ``(P, n)`` or ``(P, n, C)``, for each probe apart."""
    if labels.ndim == 2:
        return labels.gather(1, rows)
    return labels.gather(1, rows[..., None].expand(*rows.shape, labels.shape[2]))


class _Layers:
    """``P`` linear layers under Adam: ``weights (P, C, d)``, so that both products of a step run along the features."""

    def __init__(self, weights: Tensor, bias: Tensor) -> None:
        self.weights, self.bias = weights, bias
        self._state = [[torch.zeros_like(part) for part in (weights, bias)] for _ in range(3)]  # gradient and moments
        self._steps = [torch.zeros((), device=weights.device) for _ in range(2)]

    def step(
        self, X: Tensor, y: Tensor, rate: float, teacher: Teacher | None = None, taught: Tensor | None = None
    ) -> None:
        """One update of every layer on its own batch ``X (P, b, d)``, ``y (P, b)`` or ``(P, b, C)``."""
        gradients, means, squares = self._state
        logits = torch.baddbmm(self.bias[:, None], X, self.weights.mT)  # (P, b, C)
        residual = logits.softmax(-1)
        if y.ndim == 2:
            residual.scatter_add_(2, y[..., None], residual.new_full((1, 1, 1), -1.0).expand(*y.shape, 1))
        else:
            residual -= y
        if teacher is not None and taught is not None:
            softened = (logits / teacher.temperature).softmax(-1) - taught
            residual = (1 - teacher.share) * residual + teacher.share * teacher.temperature * softened
        torch.baddbmm(gradients[0], residual.mT, X, beta=0, alpha=1 / y.shape[1], out=gradients[0])
        torch.sum(residual, 1, out=gradients[1]).div_(y.shape[1])
        adam_update([self.weights, self.bias], gradients, means, squares, self._steps, rate, fused=True)


def _initial(streams: Sequence[Stream], dim: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The default distribution of ``torch.nn.Linear``: uniform within ``1/sqrt(d)``."""
    bound = 1 / math.sqrt(dim)
    weights, bias = [], []
    for stream in streams:
        chosen = stream.generator("initial")
        weights.append(torch.empty(classes, dim).uniform_(-bound, bound, generator=chosen))
        bias.append(torch.empty(classes).uniform_(-bound, bound, generator=chosen))
    return torch.stack(weights).to(device), torch.stack(bias).to(device)


def _order(streams: Sequence[Stream], count: int, size: int, epoch: int, device: torch.device) -> Tensor | None:
    """``(P, n)`` row numbers in this epoch's order; ``None`` where all rows are one batch and order is nothing."""
    if count <= size:
        return None
    return torch.stack([torch.randperm(count, generator=s.generator("order", epoch)) for s in streams]).to(device)
