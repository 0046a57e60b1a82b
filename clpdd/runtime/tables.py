"""Tables of text, for terminals and logs."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned", "with_spread"]


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of cells in columns: the first ``left`` flush left, the others, numbers, flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def placed(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(placed, rows))


def with_spread(mean: float, deviation: float | None) -> str:
    """``63.25 ± 2.88``; without a deviation as wide, so that decimal points stand below each other."""
    return f"{mean:.2f}{'        ' if deviation is None else f' ± {deviation:5.2f}'}"
