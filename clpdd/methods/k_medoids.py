"""K-medoids: real images nearest to the centres of k-means in their class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import coreset_memory
from ..functional.coresets import k_medoids
from .coreset import Coreset

__all__ = ["KMedoids"]


class KMedoids(Coreset):
    """For each cluster of a class the image nearest to its centre."""

    name = "k-medoids"

    def choose(self, Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
        """See ``clpdd.functional.coresets.k_medoids``."""
        return k_medoids(Z, count, generator)

    def numbers(self, n: int, d: int, count: int) -> int:
        """See ``clpdd.functional.coreset_memory``."""
        return coreset_memory.k_medoids(n, d, count)
