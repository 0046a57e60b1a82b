"""The methods by name. A new one is a new file here and one entry below."""

from __future__ import annotations

from .base import Context, Method, OnProgress, Snapshot
from .clp import Clp
from .lgm import Lgm
from .real import Centroid, Full, Neighbor, Random

__all__ = ["METHODS", "Context", "Method", "OnProgress", "Snapshot"]

METHODS: dict[str, Method] = {
    method.name: method for method in (Clp(), Lgm(), Random(), Centroid(), Neighbor(), Full())
}
