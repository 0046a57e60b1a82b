"""A batch of linear probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import NumericalError

__all__ = ["Judged", "Probes"]


class Judged(Protocol):
    """``P`` classifiers of features that ``clpdd.probe.scoring.score`` can judge."""

    @property
    def shape(self) -> tuple[int, int]:
        """``P``, and the number of classes ``C``."""

    @property
    def device(self) -> torch.device:
        """Where features are wanted."""

    @property
    def width(self) -> int:
        """Numbers that are held for each row of features."""

    def scorer(self) -> Callable[[Tensor], Tensor]:
        """Features ``(b, d)`` float32 to scores of the classes ``(b, P, C)``, the likeliest highest."""


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

    @property
    def shape(self) -> tuple[int, int]:
        """``P`` and ``C``."""
        return self.bias.shape[0], self.bias.shape[1]

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.weights.device

    @property
    def width(self) -> int:
        """Numbers that are held for each row of features."""
        return self.bias.numel()

    def scorer(self) -> Callable[[Tensor], Tensor]:
        """Features ``(b, d)`` to logits ``(b, P, C)``: one product serves every probe."""
        count, dim, classes = self.weights.shape
        joined = self.weights.permute(1, 0, 2).reshape(dim, count * classes)
        # In place: of many classes the logits are the largest thing that is held.
        return lambda Z: (Z @ joined).view(len(Z), count, classes).add_(self.bias)

    @classmethod
    def join(cls, parts: Sequence[Probes]) -> Probes:
        """Several batches of probes as one."""
        return cls(torch.cat([part.weights for part in parts]), torch.cat([part.bias for part in parts]))
