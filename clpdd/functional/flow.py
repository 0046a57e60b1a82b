r"""The mathematics of statistical flow matching (SFM, arXiv 2602.05391): class centres, and where each points.

Of centres :math:`t_1, \dots, t_C` the others of a class have the mean :math:`o_c = (\sum_k t_k - t_c) / (C - 1)`, and
its flow is :math:`o_c - t_c`. Adding one vector to all centres changes no flow.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["class_centres", "decoupled_loss", "flow", "flow_loss", "others"]


def class_centres(Z: Tensor, probabilities: Tensor) -> Tensor:
    """Mean feature of every class over all its views and images, ``(C, d)``; differentiable in both arguments.

    Args:
        Z: features ``(views * n, d)``, all images' first view before their second.
        probabilities: ``(n, C)``, what every image stands for, none of a class zero for all; one-hot rows give plain
            means, others weighted ones.
    """
    weights = probabilities / probabilities.sum(0)
    images: Tensor = Z.unflatten(0, (-1, len(probabilities))).mean(0)  # (n, d), over their views
    return weights.T @ images


def others(centres: Tensor) -> Tensor:
    """For every class the mean of the other classes' centres, ``(C, d)`` of ``(C, d)`` with ``C >= 2``."""
    return (centres.sum(0, keepdim=True) - centres) / (len(centres) - 1)


def flow(centres: Tensor) -> Tensor:
    """From every class's own centre to the mean of the others', ``(C, d)`` of ``(C, d)`` with ``C >= 2``."""
    return others(centres) - centres


def flow_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """``1 - cosine`` of the flows of two sets of centres ``(C, d)``, each taken as one vector; in [0, 2]."""
    return 1 - F.cosine_similarity(flow(real).flatten(), flow(synthetic).flatten(), dim=0)


def decoupled_loss(real: Tensor, synthetic: Tensor, own_share: float) -> Tensor:
    r"""The two ends of the flow matched apart, by mean squared error over ``C d`` numbers.

    .. math:: \alpha \, \mathrm{MSE}(t, s) + (1 - \alpha) \, \mathrm{MSE}(o(t), o(s))

    Args:
        real, synthetic: centres ``(C, d)``.
        own_share: ``alpha`` in [0, 1], the weight of the classes' own centres; 1 matches class means and nothing else.
    """
    own = F.mse_loss(synthetic, real)
    return own_share * own + (1 - own_share) * F.mse_loss(others(synthetic), others(real))
