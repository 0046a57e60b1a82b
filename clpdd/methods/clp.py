"""CLP-DD: synthetic images whose closed-form linear probe classifies the real features (arXiv 2605.07194)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distilled import DistilledSet
from ..moments import mse_loss
from ..objectives import blocked_loss, outer_loss
from ..optimise import optimise
from ..parts import weighted
from ..resident import RealFeatures
from ..seeding import generator
from .base import Context
from .problem import REAL_ROWS, FeatureProblem

__all__ = ["ClosedFormProbe", "Clp"]


class ClosedFormProbe(FeatureProblem):
    r"""The loss of one CLP-DD step.

    Views of the synthetic images are encoded to ``Z_s (m, d)``; ridge regression gives
    ``W = Z_s^T (Z_s Z_s^T + \lambda I)^{-1} Y_s``; ``W`` is scored on cached real features. The gradient flows through
    the solve and the encoder. Real and synthetic features are centred alike by the mean real feature. Each member of a
    joint encoder has its own ``W``, solved and scored on its own features; the loss is their weighted mean.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.real = RealFeatures(context.train, self.device, self.mean, context.runtime.features)
        moments = context.kernels
        self._moments = tuple(part.to(self.device) for part in (moments.gram, moments.cross, moments.counts))

    def close(self) -> None:
        """End the threads that read ahead."""
        super().close()
        self.real.close()

    def loss(self, Z: Tensor, step: int) -> Tensor:
        """Outer loss of the probe solved on features ``Z (views * n, d)`` of the synthetic views."""
        W = self.probe(Z)
        objective, temperature = self.settings.objective, self.settings.temperature
        if 0 < self.settings.outer_batch < len(self.real):
            features, labels = self.real.batch(step, self._rows)
            return outer_loss(W, features, labels, objective, temperature, self.parts)
        if objective == "mse":  # the same in O(d^2 C), however large the set
            return weighted(self.parts, lambda own: self._mse(W, own)).to(W.dtype)
        return blocked_loss(W, self.real.blocks(REAL_ROWS), len(self.real), objective, temperature, self.parts)

    def _mse(self, W: Tensor, own: slice) -> Tensor:
        gram, cross, counts = self._moments
        return mse_loss(W[own], gram[own, own], cross[own], counts, mean=self.mean[own])

    def _rows(self, step: int) -> Tensor:
        """Rows ``(outer_batch,)`` of the real features that a step is scored on."""
        chosen = generator(self.seed, "outer", step)
        return torch.randint(len(self.real), (self.settings.outer_batch,), generator=chosen)


class Clp:
    """CLP-DD."""

    name = "clp"
    settings_used = None

    def __call__(self, context: Context) -> DistilledSet:
        with ClosedFormProbe(context) as problem:
            return optimise(context, problem)
