"""The methods by name. A new one is a new file here and one entry below."""

from __future__ import annotations

from .base import Context, Method, OnProgress
from .clp import Clp
from .real import Centroid, Full, Random

__all__ = ["METHODS", "Context", "Method", "OnProgress"]

METHODS: dict[str, Method] = {method.name: method for method in (Clp(), Random(), Centroid(), Full())}
