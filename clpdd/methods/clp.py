"""CLP-DD: synthetic images whose closed-form linear probe classifies the real features (arXiv 2605.07194)."""

from __future__ import annotations

from contextlib import closing
from functools import cached_property

import torch
from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..functional.moments import mse_loss
from ..functional.objectives import attach, blocked_gradient, outer_loss
from ..functional.parts import weighted
from ..functional.seeding import generator
from ..optimise.context import Context
from ..optimise.loop import optimise
from ..optimise.sharding import own_rows
from .problem import REAL_ROWS, FeatureProblem
from .search import settled

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
        self.real, self._total = self.features_of(context.train), len(context.train)
        self._own = own_rows(context.train, self.ranks)
        self._kernels = context.kernels

    def close(self) -> None:
        """End the threads that read ahead."""
        super().close()
        self.real.close()

    @property
    def _features_held(self) -> int:
        return super()._features_held + self.real.on_device

    def loss(self, Z: Tensor, step: int) -> Tensor:
        """Outer loss of the probe solved on features ``Z (views * n, d)`` of the synthetic views."""
        return self.judge(self.probe(Z), step)

    def judge(self, W: Tensor, step: int) -> Tensor:
        """The loss of a probe ``W (d, C)`` on real features: on those that the step draws, or on all of them."""
        objective, temperature = self.settings.objective, self.settings.number("temperature")
        batch = self.settings.outer_batch
        if 0 < batch < self._total:
            features, labels = self.real.batch(step, self._rows)
            if self.ranks.size == 1:
                return outer_loss(W, features, labels, objective, temperature, self.parts)
            drawn = [(features, labels)] if len(labels) else []
            return self._summed(W, blocked_gradient(W, drawn, batch, objective, temperature, self.parts))
        if objective == "mse" and self.device.type in ("cpu", "cuda"):  # in O(d^2 C) for any set, but in float64
            return weighted(self.parts, lambda own: self._mse(W, own)).to(W.dtype)
        blocks = self.real.blocks(REAL_ROWS)
        return self._summed(W, blocked_gradient(W, blocks, self._total, objective, temperature, self.parts))

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        gram, cross, counts = (
            part.to(self.device) for part in (self._kernels.gram, self._kernels.cross, self._kernels.counts)
        )
        return gram, cross, counts

    def _mse(self, W: Tensor, own: slice) -> Tensor:
        gram, cross, counts = self._moments
        return mse_loss(W[own], gram[own, own], cross[own], counts, mean=self.mean[own])

    def _summed(self, W: Tensor, own: tuple[Tensor, Tensor]) -> Tensor:
        """The loss over all ranks' real features, from its part over this rank's and that part's gradient in ``W``."""
        value, gradient = self.ranks.all_reduce(*own)
        return attach(W, value, gradient)

    def _rows(self, step: int) -> Tensor:
        """Those of the ``outer_batch`` rows that a step is scored on which are this rank's, counted from its first."""
        drawn = torch.randint(self._total, (self.settings.outer_batch,), generator=generator(self.seed, "outer", step))
        return drawn[(drawn >= self._own.start) & (drawn < self._own.stop)] - self._own.start


class Clp:
    """CLP-DD."""

    name = "clp"

    def __call__(self, context: Context) -> DistilledSet:
        context = settled(context, ClosedFormProbe)
        with closing(ClosedFormProbe(context)) as problem:
            return optimise(context, problem)
