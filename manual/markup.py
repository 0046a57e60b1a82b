"""Small pieces of HTML: Markdown's own tables stumble over the bars and stars that settings and types are full of."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

__all__ = ["code", "prose", "table"]


def code(text: str) -> str:
    """``text`` in code type."""
    return f"<code>{html.escape(text, quote=False)}</code>"


def prose(text: str) -> str:
    """Text in which backticks mark code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    lines = ["<table>", "<thead><tr>", *(f"<th>{prose(name)}</th>" for name in head), "</tr></thead>", "<tbody>"]
    for row in rows:
        lines += ["<tr>", *(f"<td>{cell}</td>" for cell in row), "</tr>"]
    return "\n".join([*lines, "</tbody>", "</table>", ""])
