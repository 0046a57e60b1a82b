"""Logits whose softmax can be taken for a probability: one temperature, fitted by cross-entropy."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fit_temperature"]

_LOWEST, _HIGHEST = 1e-6, 1e6  # of the factor on the logits


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    r"""The temperature ``T > 0`` at which ``softmax(logits / T)`` has the least cross-entropy to the targets.

    Temperature scaling (Guo et al., arXiv 1706.04599), which leaves the order of the classes alone. Where every example
    is taken rightly, cross-entropy would make the probabilities 1; by the rule of succession, ``N`` right of ``N``
    speak for ``(N + 1) / (N + 2)`` instead, so that targets keep ``1 / (N + 2)`` for the other classes, as in Platt
    scaling.

    Args:
        logits: ``(N, C)``, of examples that the probe was not trained on.
        targets: classes ``(N,)`` int64, or probabilities of them ``(N, C)``.

    Returns:
        ``T``; 1 where the logits tell no class from another.
    """
    count, classes = logits.shape
    scores = logits.double().cpu()
    scores = scores - scores.mean(1, keepdim=True)
    aims = targets.cpu()
    aims = torch.nn.functional.one_hot(aims, classes).double() if aims.ndim == 1 else aims.double()
    rest = 1 / (count + 2)
    aims = aims * (1 - rest) + (1 - aims) * rest / max(1, classes - 1)

    def slope(factor: float) -> float:
        """Of the cross-entropy, which is convex in the factor on the logits."""
        return float((((factor * scores).softmax(1) - aims) * scores).sum())

    if not count or float(scores.abs().max()) == 0:
        return 1.0
    low, high = _LOWEST, _HIGHEST
    for _ in range(100):  # halves the logarithm's interval
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / float((low * high) ** 0.5)
