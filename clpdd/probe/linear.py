"""A batch of linear probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericalError

__all__ = ["Probes"]


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

    @classmethod
    def join(cls, parts: Sequence[Probes]) -> Probes:
        """Several batches of probes as one."""
        return cls(torch.cat([part.weights for part in parts]), torch.cat([part.bias for part in parts]))
