"""Linear probes: trained on a few images, or on all real features, and scored on test features.

Every function works on a batch of ``P`` probes at once (one for each seed and draw), stored as one ``(P, d, C)``
tensor: a probe is small, and on any device one batched product is far quicker than ``P`` loops. Probes never mix:
each one has its own stream of random numbers and comes out as if it had been trained alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.optim.adam import adam

from .errors import NumericalError
from .labels import as_targets
from .parts import WHOLE, Part, even_factors
from .ridge import solve, solve_normal
from .views import Stream

__all__ = [
    "BATCH",
    "LOGISTIC_GRID",
    "Probes",
    "Score",
    "fit_logistic",
    "fit_ridge",
    "fit_sgd",
    "score",
]

BATCH = 100
"""Rows of a batch of the ``sgd`` protocol, where there are so many."""

LOGISTIC_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 strengths of the full-data logistic regression, per example of the mean loss, strongest first."""

_RIDGE_ROWS = 16384  # rows of the closed form in float32 at once


@dataclass(frozen=True, eq=False)
class Probes:
    """``P`` linear probes: ``logits = Z weights + bias`` with ``weights (P, d, C)``, ``bias (P, C)``, float32."""

    weights: Tensor
    bias: Tensor

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.weights).all() and torch.isfinite(self.bias).all()):
            raise NumericalError(
                "a probe ended in NaN or infinite weights: lower evaluate.learning_rate, raise evaluate.ridge, or "
                "check that the encoder is finite on the images"
            )

    def __len__(self) -> int:
        return len(self.weights)

    @classmethod
    def join(cls, parts: Sequence[Probes]) -> Probes:
        """Several batches of probes as one."""
        return cls(torch.cat([part.weights for part in parts]), torch.cat([part.bias for part in parts]))


# -- protocols ---------------------------------------------------------------------------------------------------------


def fit_sgd(
    features: Callable[[int, Tensor | None], Tensor],
    labels: Tensor,
    classes: int,
    streams: Sequence[Stream],
    *,
    epochs: int,
    learning_rate: float,
    batch: int = BATCH,
    tick: Callable[[], object] = lambda: None,
) -> Probes:
    """The field's protocol: softmax regression on raw features by Adam, cosine to zero, no weight decay.

    Equivalent to a ``torch.nn.Linear(d, C)`` trained by ``torch.optim.Adam`` with ``CosineAnnealingLR`` stepped once
    an epoch, for each probe apart. The gradient of the cross-entropy of a linear layer is written out.

    Args:
        features: (epoch, rows) -> ``(P, b, d)`` float32: this epoch's features of the images ``rows (P, b)``, one set
            for each probe; rows ``None`` asks for all ``n``, in order. ``clpdd.views`` has two of the kind.
        labels: classes ``(P, n)`` int64 in ``[0, classes)``, or probabilities of them ``(P, n, C)``.
        streams: ``P`` sources of random numbers, for the initial weights and the order of the rows.
        learning_rate: per 256 rows of a batch; ``learning_rate * min(batch, n) / 256`` is used.
        batch: rows of a batch; the last, partial batch of an epoch is kept.
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
            layers.step(features(epoch, rows), labels if rows is None else _pick(labels, rows), rate)
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

    def step(self, X: Tensor, y: Tensor, rate: float) -> None:
        """One update of every layer on its own batch ``X (P, b, d)``, ``y (P, b)`` or ``(P, b, C)``."""
        gradients, means, squares = self._state
        residual = torch.baddbmm(self.bias[:, None], X, self.weights.mT).softmax(-1)  # (P, b, C)
        if y.ndim == 2:
            residual.scatter_add_(2, y[..., None], residual.new_full((1, 1, 1), -1.0).expand(*y.shape, 1))
        else:
            residual -= y
        torch.baddbmm(gradients[0], residual.mT, X, beta=0, alpha=1 / y.shape[1], out=gradients[0])
        torch.sum(residual, 1, out=gradients[1]).div_(y.shape[1])
        # The optimiser's own function: around it torch.optim.Adam costs more than a small probe's whole step.
        adam(
            [self.weights, self.bias],
            gradients,
            means,
            squares,
            [],
            self._steps,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


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


def fit_ridge(
    Z: Tensor, labels: Tensor, classes: int, mean: Tensor, ridge: float, parts: Sequence[Part] = WHOLE
) -> Probes:
    """The closed-form protocol: ridge regression on centred features and targets less ``1/C``.

    Args:
        Z: ``(P, m, d)``, of any float type; memory beside it does not grow with ``m``.
        labels: classes ``(P, m)`` int64, or probabilities of them ``(P, m, C)``.
        mean: ``(d,)``, subtracted from the features: the mean over the real training images, which is one vector
            whatever the set, and costs nothing at test time since it moves into the bias.
        ridge: relative to the mean squared row norm (``clpdd.ridge.solve``), > 0.
        parts: of a joint encoder, whose members' features are brought to one scale (``even_factors``) for the solve:
            one ridge is for all.
    """
    mean, labels = mean.to(Z.device, torch.float32), labels.to(Z.device)
    weights = torch.stack([_ridge(own, y, classes, mean, ridge, parts) for own, y in zip(Z, labels, strict=True)])
    return Probes(weights, -mean @ weights)


def _ridge(Z: Tensor, labels: Tensor, classes: int, mean: Tensor, ridge: float, parts: Sequence[Part]) -> Tensor:
    count, dim = Z.shape
    if count <= dim:
        X = Z.float() - mean
        factors = even_factors(parts, X.square().mean(0))
        return factors[:, None] * solve(X * factors, as_targets(labels, classes) - 1.0 / classes, ridge)
    gram, cross = mean.new_zeros(dim, dim), mean.new_zeros(dim, classes)
    for rows, y in zip(Z.split(_RIDGE_ROWS), labels.split(_RIDGE_ROWS), strict=True):
        X = rows.float() - mean
        gram.addmm_(X.T, X)
        cross.addmm_(X.T, as_targets(y, classes) - 1.0 / classes)
    factors = even_factors(parts, gram.diagonal() / count)
    even = gram * torch.outer(factors, factors)
    return factors[:, None] * solve_normal(even, factors[:, None] * cross, count, ridge)


def fit_logistic(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    classes: int,
    *,
    grid: Sequence[float] = LOGISTIC_GRID,
    iterations: int = 100,
    block: int = 16384,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Probes, float]:
    """Multinomial logistic regression on all real features by L-BFGS: the upper bound of the ``sgd`` protocol.

    Features are standardised by the training set. Strengths are tried from the strongest to the weakest, each from
    the last one's solution, and the best on validation is kept (the stronger of equals).

    Args:
        train, validation: features ``(N, d)`` and labels ``(N,)``.
        grid: weights of ``|W|^2 / 2`` beside the mean cross-entropy; the bias is free.
        iterations: bound on the iterations at each strength.
        block: rows of features in one product.
        tick: called once an iteration or so; it may raise to stop.

    Returns:
        One probe for raw features, and the strength it was fitted with.
    """
    Z, labels = train
    deviation, mean = torch.std_mean(Z, 0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # constant: no weight at all
    X = (Z - mean) / deviation
    weights, bias = Z.new_zeros(Z.shape[1], classes), Z.new_zeros(classes)
    best: tuple[float, float, Probes] | None = None
    for strength in sorted(grid, reverse=True):
        _minimise(weights, bias, X, labels, strength, iterations, block, tick)
        raw = weights / deviation[:, None]
        probes = Probes(raw[None].clone(), (bias - mean @ raw)[None])
        top1 = score(probes, [validation]).top1[0]
        if best is None or top1 > best[0]:
            best = (top1, strength, probes)
    assert best is not None
    return best[2], best[1]


def _minimise(
    weights: Tensor,
    bias: Tensor,
    X: Tensor,
    labels: Tensor,
    strength: float,
    iterations: int,
    block: int,
    tick: Callable[[], object],
) -> None:
    optimiser = torch.optim.LBFGS(
        [weights, bias], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        tick()
        loss = strength / 2 * weights.square().sum()
        weights.grad, bias.grad = strength * weights, torch.zeros_like(bias)
        for rows, y in zip(torch.split(X, block), torch.split(labels, block), strict=True):
            logits = torch.addmm(bias, rows, weights)
            logs = logits.log_softmax(-1)
            loss = loss - logs.gather(1, y[:, None]).sum() / len(X)
            residual = (logs.exp() - one_hot(y, len(bias))) / len(X)
            weights.grad.addmm_(rows.T, residual)
            bias.grad += residual.sum(0)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]


# -- scoring -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """What ``P`` probes get right of ``N`` images.

    Attributes:
        top1, top5: ``P`` percentages. Top-5 is top-C with fewer than five classes, hence 100.
        confusion: ``(C, C)`` int64, images of class ``row`` taken for class ``column``, summed over the probes.
        groups: ``(P, G)`` float64, top-1 in percent of the images of each group; ``None`` without groups.
    """

    top1: list[float]
    top5: list[float]
    confusion: Tensor
    groups: Tensor | None = None


def score(probes: Probes, blocks: Iterable[tuple[Tensor, Tensor]], groups: Tensor | None = None) -> Score:
    """Score probes on blocks of features ``(b, d)`` and labels ``(b,)``, read once, in float32.

    Args:
        groups: ``(N,)`` int64 in ``[0, G)``, the group of every row of the blocks in their order; none is empty.
    """
    count, dim, classes = probes.weights.shape
    device = probes.weights.device
    joined = probes.weights.permute(1, 0, 2).reshape(dim, count * classes)  # one product serves every probe
    hits = torch.zeros(2, count, dtype=torch.int64, device=device)
    confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    total = 0
    sizes = torch.zeros(0, dtype=torch.int64) if groups is None else groups.bincount()
    grouped = torch.zeros(len(sizes), count, dtype=torch.int64, device=device)
    step = max(1, 2**26 // (count * classes))
    for features, labels in blocks:
        for Z, y in zip(torch.split(features, step), torch.split(labels, step), strict=True):
            Z, y = Z.to(device, torch.float32), y.to(device)
            logits = (Z @ joined).view(len(y), count, classes) + probes.bias  # (b, P, C)
            ranked = logits.topk(min(5, classes), dim=-1).indices  # (b, P, 5)
            right = ranked == y[:, None, None]
            guess = ranked[..., 0]
            hits += torch.stack([right[..., 0].sum(0), right.any(-1).sum(0)])
            confusion += torch.bincount((y[:, None] * classes + guess).flatten(), minlength=classes * classes)
            if groups is not None:
                grouped.index_add_(0, groups[total : total + len(y)].to(device), right[..., 0].long())
            total += len(y)
    top1, top5 = (hits.double() * 100 / max(total, 1)).tolist()
    shares = None if groups is None else (grouped.cpu().double() * 100 / sizes[:, None]).T
    return Score(top1, top5, confusion.view(classes, classes).cpu(), shares)
