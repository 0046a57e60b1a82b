"""The presets, from their files: each begins with a comment that says what it is."""

from __future__ import annotations

from pathlib import Path

from .markup import code, prose, table

__all__ = ["presets_reference"]


def presets_reference(folder: Path) -> str:
    """Two tables, of the datasets and of the encoders."""
    parts = []
    for kind in ("datasets", "encoders"):
        rows = [[code(path.stem), prose(_first_comment(path))] for path in sorted((folder / kind).glob("*.yaml"))]
        parts.append(table([kind.removesuffix("s"), "what"], rows))
    return "\n".join(parts)


def _first_comment(path: Path) -> str:
    """The comment lines at the top as one text."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)
