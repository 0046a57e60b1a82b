"""Herding: real images whose mean feature keeps to that of their class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import coreset_memory
from ..functional.coresets import herding
from .coreset import Coreset

__all__ = ["Herding"]


class Herding(Coreset):
    """Images chosen one by one, so that their mean feature stays as near to the class mean as it can."""

    name = "herding"

    def choose(self, Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
        """See ``clpdd.functional.coresets.herding``."""
        return herding(Z, count)

    def numbers(self, n: int, d: int, count: int) -> int:
        """See ``clpdd.functional.coreset_memory``."""
        return coreset_memory.herding(n, d, count)
