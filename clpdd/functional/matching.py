"""The mathematics of linear gradient matching (arXiv 2511.16674): two gradients of a random classifier, compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .seeding import generator
from .targets import as_targets

__all__ = ["classifier_gradient", "match_loss", "random_classifier"]

_WEIGHT_STD = 0.01


def random_classifier(classes: int, dim: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Weights ``(C, d)`` from N(0, 0.01^2) and zero bias ``(C,)``: a function of (seed, step)."""
    weight = torch.randn(classes, dim, generator=generator(seed, "classifier", step)) * _WEIGHT_STD
    return weight, torch.zeros(classes)


def classifier_gradient(Z: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy of ``Z W^T + b`` with respect to ``W`` and ``b``, flat: ``(C * d + C,)``.

    Args:
        Z: features ``(m, d)``; the result is differentiable in them.
        labels: classes ``(m,)`` int64, or probabilities of them ``(m, C)``, in which the result is differentiable too.
        weight, bias: ``(C, d)`` and ``(C,)``.
    """
    residual = F.linear(Z, weight, bias).softmax(1) - as_targets(labels, len(bias))
    residual = residual / len(Z)
    return torch.cat([(residual.T @ Z).flatten(), residual.sum(0)])


def match_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """``1 - cosine`` of two flat gradients, in [0, 2]."""
    return 1 - F.cosine_similarity(real, synthetic, dim=0)
