"""The result table as text."""

from __future__ import annotations

import statistics

import pyarrow.parquet as pq

from ..errors import ArtifactError
from ..storage.layout import Layout

__all__ = ["result_table"]


def result_table(layout: Layout) -> str:
    """Mean and standard deviation of test top-1 by method and protocol, worst groups, and where the report is.

    Raises ``ArtifactError`` when there are no results yet.
    """
    path = layout.results / "results.parquet"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: run `dvc repro`, or `clpdd evaluate`")
    groups: dict[tuple[str, ...], list[tuple[float, float, float | None]]] = {}
    for row in pq.read_table(path).to_pylist():
        keys = ("distil_encoder", "method", "eval_encoder", "protocol", "views")
        groups.setdefault(tuple(row[key] for key in keys), []).append((row["top1"], row["top5"], row["worst_group"]))
    grouped = any(score[2] is not None for scores in groups.values() for score in scores)
    worst_of = ("worst group %",) if grouped else ()
    header = ("distilled with", "method", "evaluated with", "protocol", "views", "top-1 %", "top-5 %", *worst_of)
    lines: list[tuple[str, ...]] = [(*header, "probes")]
    for key, scores in groups.items():
        top1, top5 = [s[0] for s in scores], [s[1] for s in scores]
        std = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        found = [s[2] for s in scores if s[2] is not None]
        worst = (f"{statistics.mean(found):.2f}" if found else "",) if grouped else ()
        shown = (f"{statistics.mean(top1):.2f}{std}", f"{statistics.mean(top5):.2f}", *worst, str(len(scores)))
        lines.append((*key, *shown))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    page = layout.results / "report.html"
    return f"{text}\n\nreport: {page.resolve().as_uri()}" if page.exists() else text
