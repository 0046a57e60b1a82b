"""The columns of the tables that the pipeline writes, from their schemas."""

from __future__ import annotations

import pyarrow as pa

from .markup import code, table

__all__ = ["columns"]


def columns(schema: pa.Schema) -> str:
    """Names and Arrow types."""
    return table(["column", "type"], [[code(field.name), code(str(field.type))] for field in schema])
