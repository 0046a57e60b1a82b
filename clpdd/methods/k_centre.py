"""Greedy k-centre: real images that leave none of their class far from all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import coreset_memory
from ..functional.coresets import k_centre
from .coreset import Coreset

__all__ = ["KCentre"]


class KCentre(Coreset):
    """The most central image of a class, then each time the one farthest from those chosen."""

    name = "k-centre"

    def choose(self, Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
        """See ``clpdd.functional.coresets.k_centre``."""
        return k_centre(Z, count)

    def numbers(self, n: int, d: int, count: int) -> int:
        """See ``clpdd.functional.coreset_memory``."""
        return coreset_memory.k_centre(n, d, count)
