"""The upper bound of the ``sgd`` protocol: logistic regression on all real features, as well as it can be done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .linear import Probes
from .scoring import score

__all__ = ["LOGISTIC_GRID", "fit_logistic"]

log = logging.getLogger(__name__)

LOGISTIC_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 strengths, per example of the mean loss, strongest first."""

_LOGITS = 2**24  # numbers of one block of logits
_HISTORY_BYTES = 2**30  # of L-BFGS: as many pairs of directions as fit in here
_MANY = 2**22  # weights beyond which a CPU does no more than _CPU_WORK
_CPU_WORK = 2**41  # multiply-adds: about a minute of one core
_FEWEST = 3  # iterations and pairs


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

    On a CPU a probe of more than four million weights is stopped early, which is said: what it reaches is then less
    than could be reached.

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
    block = min(block, max(1, _LOGITS // classes))
    iterations = _affordable(X, classes, len(grid), iterations)
    for strength in sorted(grid, reverse=True):
        _minimise(weights, bias, X, labels, strength, iterations, block, tick)
        raw = weights / deviation[:, None]
        probes = Probes(raw[None].clone(), (bias - mean @ raw)[None])
        top1 = score(probes, [validation]).top1[0]
        if best is None or top1 > best[0]:
            best = (top1, strength, probes)
    assert best is not None
    return best[2], best[1]


def _affordable(X: Tensor, classes: int, strengths: int, iterations: int) -> int:
    """Iterations at each strength: all that are asked for, unless a CPU would take hours over them."""
    work = 2 * X.numel() * classes  # multiply-adds of a gradient
    if X.device.type != "cpu" or X.shape[1] * classes <= _MANY:
        return iterations
    count = min(iterations, max(_FEWEST, _CPU_WORK // (work * strengths)))
    if count < iterations:
        log.warning(
            "logistic regression on all %d images over %d classes is stopped after %d iterations at each strength: its "
            "accuracy is less than could be reached (a CUDA device does all %d)",
            len(X),
            classes,
            count,
            iterations,
        )
    return count


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
    history = max(_FEWEST, min(100, _HISTORY_BYTES // (8 * weights.numel())))  # 100 is torch's own default
    optimiser = torch.optim.LBFGS(
        [weights, bias],
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-8,
        history_size=history,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        tick()
        loss = strength / 2 * weights.square().sum()
        weights.grad, bias.grad = strength * weights, torch.zeros_like(bias)
        for rows, y in zip(torch.split(X, block), torch.split(labels, block), strict=True):
            logits = torch.addmm(bias, rows, weights)
            logs = logits.log_softmax(-1)
            loss = loss - logs.gather(1, y[:, None]).sum() / len(X)
            residual = logs.exp_().scatter_add_(1, y[:, None], logs.new_full((1, 1), -1.0).expand(len(y), 1))
            residual /= len(X)
            weights.grad.addmm_(rows.T, residual)
            bias.grad += residual.sum(0)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch has not annotated it
