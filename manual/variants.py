"""The built-in variants of the methods, from the table that resolves them."""

from __future__ import annotations

import json
from typing import Any

from clpdd.config.variants import BUILT_IN

from .markup import code, table

__all__ = ["variants_reference"]


def variants_reference() -> str:
    """A table: the name, the method behind it, and what it sets differently from ``distill``."""
    rows = []
    for name, changes in BUILT_IN.items():
        differs = "<br>".join(code(f"{key}: {value}") for key, value in _flat(changes) if key != "method")
        rows.append([code(name), code(changes["method"]), differs or "nothing"])
    return table(["name", "method", "differs from distill in"], rows)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, json.dumps(value))]
    return pairs
