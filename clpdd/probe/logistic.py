"""Logistic regression, its strength swept on validation features; on all real features the bound of ``sgd``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .linear import Probes
from .scoring import score

__all__ = ["LOGISTIC_GRID", "SMALL_GRID", "fit_logistic"]

log = logging.getLogger(__name__)

LOGISTIC_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""L2 strengths, per example of the mean loss, strongest first."""

SMALL_GRID = (10.0, 1.0, *LOGISTIC_GRID)
"""The same for a few images, which want stronger ones too."""

_LOGITS = 2**24  # numbers of one block of logits
_HISTORY_BYTES = 2**30  # of L-BFGS: as many pairs of directions as fit in here
_SHORT_HISTORY_BYTES = 2**28  # the same where the fit is stopped early
_MANY = 2**22  # weights beyond which a CPU does no more than _CPU_WORK
_CPU_WORK = 2**41  # multiply-adds: about a minute of one core
_FEWEST = 3  # iterations and pairs


def fit_logistic(
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    classes: int,
    *,
    grid: Sequence[float] = LOGISTIC_GRID,
    standard: tuple[Tensor, Tensor] | None = None,
    iterations: int = 100,
    block: int = 16384,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Probes, float]:
    """Multinomial logistic regression by L-BFGS.

    Features are standardised by the training set, or as ``standard`` says. Strengths are tried from the strongest to
    the weakest, each from the last one's solution, and the best on validation is kept (the stronger of equals).

    On a CPU a probe of more than four million weights that would take more than about a minute is fitted at the middle
    strength alone and stopped after that, which is said: what it reaches is then less than could be reached.

    Args:
        train: features ``(N, d)`` and classes ``(N,)``, or probabilities of them ``(N, C)``.
        validation: features ``(M, d)`` and classes ``(M,)``.
        grid: weights of ``|W|^2 / 2`` beside the mean cross-entropy; the bias is free.
        standard: mean and deviation ``(d,)`` of the features; of a few images their own would be far from the data's.
        iterations: bound on the iterations at each strength.
        block: rows of features in one product.
        tick: called once an iteration or so; it may raise to stop.

    Returns:
        One probe for raw features, and the strength it was fitted with.
    """
    Z, labels = train
    if standard is None:
        deviation, mean = torch.std_mean(Z, 0, correction=0)
    else:
        mean, deviation = (part.to(Z) for part in standard)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # constant: no weight at all
    X = (Z - mean) / deviation
    weights, bias = Z.new_zeros(Z.shape[1], classes), Z.new_zeros(classes)
    best: tuple[float, float, Probes] | None = None
    block = min(block, max(1, _LOGITS // classes))
    strengths, history = sorted(grid, reverse=True), _HISTORY_BYTES
    count = _affordable(X, classes, len(grid), iterations)
    if count is None:
        count = iterations
    else:
        strengths, history = [strengths[len(strengths) // 2]], _SHORT_HISTORY_BYTES
    for strength in strengths:
        _minimise(weights, bias, X, labels, strength, count, history, block, tick)
        raw = weights / deviation[:, None]
        probes = Probes(raw[None].clone(), (bias - mean @ raw)[None])
        top1 = score(probes, [validation]).top1[0]
        if best is None or top1 > best[0]:
            best = (top1, strength, probes)
    assert best is not None
    return best[2], best[1]


def _affordable(X: Tensor, classes: int, strengths: int, iterations: int) -> int | None:
    """Iterations at one strength where a CPU would take hours over all of them; ``None`` anywhere else."""
    work = 2 * X.numel() * classes  # multiply-adds of a gradient
    if X.device.type != "cpu" or X.shape[1] * classes <= _MANY or work * strengths * iterations <= _CPU_WORK:
        return None
    count = min(iterations, max(_FEWEST, _CPU_WORK // work))
    log.warning(
        "logistic regression on all %d images over %d classes is fitted at one strength and stopped after %d "
        "iterations: its accuracy is less than could be reached (a CUDA device does %d at each of %d strengths)",
        len(X),
        classes,
        count,
        iterations,
        strengths,
    )
    return count


def _minimise(
    weights: Tensor,
    bias: Tensor,
    X: Tensor,
    labels: Tensor,
    strength: float,
    iterations: int,
    history_bytes: int,
    block: int,
    tick: Callable[[], object],
) -> None:
    history = max(_FEWEST, min(100, history_bytes // (8 * weights.numel())))  # 100 is torch's own default
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
            right = logs.gather(1, y[:, None]) if y.ndim == 1 else logs * y
            loss = loss - right.sum() / len(X)
            residual = logs.exp_()
            if y.ndim == 1:
                residual.scatter_add_(1, y[:, None], logs.new_full((1, 1), -1.0).expand(len(y), 1))
            else:
                residual -= y
            residual /= len(X)
            weights.grad.addmm_(rows.T, residual)
            bias.grad += residual.sum(0)
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch has not annotated it
