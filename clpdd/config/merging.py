"""Nested settings over nested settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["merged"]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any], whole: Collection[str] = ()) -> dict[str, Any]:
    """``base`` with nested ``changes``; values of the keys in ``whole``, at any depth, are replaced and not merged."""
    out = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping) and key not in whole
        out[key] = merged(out[key], value, whole) if nested else value
    return out
