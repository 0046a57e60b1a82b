"""Outer losses: how the probe induced by the synthetic images is judged on real, cached features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .errors import SettingsError
from .ridge import centred_one_hot

__all__ = ["outer_loss"]


def outer_loss(W: Tensor, Z: Tensor, labels: Tensor, objective: str, temperature: float) -> Tensor:
    """Mean loss of the probe ``W (d, C)`` on real features ``Z (b, d)`` with ``labels (b,)`` in ``[0, C)``.

    - ``cross_entropy``: softmax cross-entropy of ``Z W / temperature`` (the paper's objective; the columns of ``W``
      act as class anchors in feature space);
    - ``cosine``: the same with the rows of ``Z`` and the columns of ``W`` scaled to length one;
    - ``mse``: mean over samples of the squared distance to the centred one-hot target (the paper's ablation).

    ``temperature`` is in ``(0, inf)`` and has no effect on ``mse``. Raises ``SettingsError`` for another name.
    """
    if objective == "cross_entropy":
        return F.cross_entropy(Z @ W / temperature, labels)
    if objective == "cosine":
        return F.cross_entropy(F.normalize(Z, dim=1) @ F.normalize(W, dim=0) / temperature, labels)
    if objective == "mse":
        return (Z @ W - centred_one_hot(labels, W.shape[1])).square().sum(1).mean()
    raise SettingsError(f"distill.objective is {objective!r}; it must be cross_entropy, cosine or mse")
