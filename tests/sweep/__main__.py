"""Run the sweep and write its table."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter
from pathlib import Path

import timm
import torch

from .checks import Row
from .trial import sweep

_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "encoders.md"
_BEGIN, _END = "<!-- sweep: begin -->", "<!-- sweep: end -->"
_FAULTS = ("traceback", "unclear", "own weights refused", "wrong weights taken", "features differ", "coverage differs")


def _table(rows: list[Row]) -> str:
    head = ["module", "model", "size", "own weights", "at another size", "at an odd size", "wrong weights"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for row in rows:
        cells = [row.module, f"`{row.model}`", row.size, row.own, row.other, row.odd, row.wrong]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _summary(rows: list[Row], wanted: int) -> str:
    counts = Counter(kind for row in rows for fault in row.faults for kind in _FAULTS if fault.startswith(kind))
    faults = ", ".join(f"{kind} {counts[kind]}" for kind in _FAULTS)
    tried = f"{len(rows)} modules" if len(rows) == wanted else f"{len(rows)} of {wanted} modules so far"
    return f"{tried}, timm {timm.__version__}, torch {torch.__version__.split('+')[0]}: {faults}."


def main() -> int:
    """Try some modules, or all, which also rewrites the table. Returns 1 where anything is at fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweep", description=__doc__)
    parser.add_argument("modules", nargs="*", help="modules of timm (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="models at once, each on one core (default: 2)")
    options = parser.parse_args()
    wanted = options.modules or timm.list_modules()
    rows: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, maxtasksperchild=8) as pool:
        for row, seconds in pool.imap_unordered(sweep, wanted):
            rows.append(row)
            cells = [row.module, row.model, row.size, row.own, row.other, row.odd, row.wrong]
            print(f"{seconds:5.1f} s  {' | '.join(cells)}", flush=True)
            for kind, text in row.faults.items():
                print(f"         {kind}: {text[:600]}", flush=True)
            if not options.modules:  # as they come, so that an interrupted sweep keeps what it has
                _write(sorted(rows, key=lambda row: row.module), len(wanted))
    print(_summary(rows, len(wanted)))
    return int(any(row.faults for row in rows))


def _write(rows: list[Row], wanted: int) -> None:
    page = _PAGE.read_text(encoding="utf-8")
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    _PAGE.write_text(f"{before}{_BEGIN}\n{_summary(rows, wanted)}\n\n{_table(rows)}\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
