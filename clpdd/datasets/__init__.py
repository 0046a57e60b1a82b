"""Labelled images from anywhere -> checked Parquet indexes of three splits, and reading them back."""

from __future__ import annotations

from .build import LAYOUTS, build_index, index_arrays
from .decode import FORMATS, decode_image
from .index import Index

__all__ = ["FORMATS", "LAYOUTS", "Index", "build_index", "decode_image", "index_arrays"]
