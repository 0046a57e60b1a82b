"""The section ``kernels``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .domains import Positive, PositiveReal, Section

__all__ = ["KernelSettings"]


class KernelSettings(Section):
    """The one streamed pass over the features."""

    ridge_grid: Annotated[list[PositiveReal], Field(min_length=1)] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    block_rows: Positive = 8192
    nearest: Positive = 10
