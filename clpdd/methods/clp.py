"""CLP-DD: synthetic images whose closed-form linear probe classifies the real features (arXiv 2605.07194)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distilled import DistilledSet
from ..moments import mse_loss
from ..objectives import outer_loss
from ..optimise import optimise
from ..seeding import generator
from .base import Context
from .problem import FeatureProblem

__all__ = ["ClosedFormProbe", "Clp"]


class ClosedFormProbe(FeatureProblem):
    r"""The loss of one CLP-DD step.

    Views of the synthetic images are encoded to ``Z_s (m, d)``; ridge regression gives
    ``W = Z_s^T (Z_s Z_s^T + \lambda I)^{-1} Y_s``; ``W`` is scored on cached real features. The gradient flows through
    the solve and the encoder. Real and synthetic features are centred alike by the mean real feature.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.real = (context.train.features().to(self.device) - self.mean).contiguous()
        self.real_labels = context.train.labels.to(self.device)
        moments = context.kernels
        self._moments = tuple(part.to(self.device) for part in (moments.gram, moments.cross, moments.counts))

    def loss(self, Z: Tensor, step: int) -> Tensor:
        """Outer loss of the probe solved on features ``Z (views * n, d)`` of the synthetic views."""
        W = self.probe(Z)
        if self.settings.objective == "mse" and not self.settings.outer_batch:
            return mse_loss(W, *self._moments, mean=self.mean).to(
                W.dtype
            )  # the same in O(d^2 C), however large the set
        real, labels = self.real, self.real_labels
        if 0 < self.settings.outer_batch < len(real):
            rows = torch.randint(len(real), (self.settings.outer_batch,), generator=generator(self.seed, "outer", step))
            rows = rows.to(real.device)
            real, labels = real[rows], labels[rows]
        return outer_loss(W, real, labels, self.settings.objective, self.settings.temperature)


class Clp:
    """CLP-DD."""

    name = "clp"
    settings_used = None

    def __call__(self, context: Context) -> DistilledSet:
        return optimise(context, ClosedFormProbe(context))
