"""The section ``cache``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from .domains import Positive, Precision, Section

__all__ = ["CacheSettings"]


class CacheSettings(Section):
    """Encoding of the real images into Zarr."""

    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "auto"
    jpeg: Literal["exact", "reduced"] = "exact"
    batch_size: Positive = 64
    chunk_rows: Positive = 512
    shard_rows: Positive = 8192

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows ({self.shard_rows}) must be a multiple of chunk_rows ({self.chunk_rows})")
        return self
