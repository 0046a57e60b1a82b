"""Facility location: real images to which all others of their class are near on average."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import coreset_memory
from ..functional.coresets import facility_location
from .coreset import Coreset

__all__ = ["FacilityLocation"]


class FacilityLocation(Coreset):
    """Images chosen one by one, so that the mean distance to the nearest of them falls the most."""

    name = "facility-location"

    def choose(self, Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
        """See ``clpdd.functional.coresets.facility_location``."""
        return facility_location(Z, count)

    def numbers(self, n: int, d: int, count: int) -> int:
        """See ``clpdd.functional.coreset_memory``."""
        return coreset_memory.facility_location(n, d, count)
