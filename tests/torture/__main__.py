"""The command line of the torture."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from .punish import torture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs that are killed (default: 3)")
    parser.add_argument("--kills", type=int, default=24, help="kills in each of them (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, signals and damages")
    parser.add_argument("--quick", action="store_true", help="one run, six kills, the method clp alone")
    parser.add_argument("--folder", type=Path, help="work there and leave it (default: a temporary folder)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="clpdd-torture-"))
    runs, kills = (1, 6) if options.quick else (options.runs, options.kills)
    report = torture(folder / "project", runs, kills, options.seed, ["clp"] if options.quick else None, print)
    print(report)
    if report.passed and options.folder is None:
        shutil.rmtree(folder)
    else:
        print(f"left in {folder}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
