"""The features of the real images: encoded once into sharded Zarr v3, read back by every later stage."""

from __future__ import annotations

from .cache import cache_features
from .store import FeatureStore

__all__ = ["FeatureStore", "cache_features"]
