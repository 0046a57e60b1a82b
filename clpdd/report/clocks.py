"""Clock and memory readings: they lie beside the artifacts, differ from run to run, and may be missing."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.layout import Layout
from ..storage.work import item_name
from .data import KEYS, read_mapping, read_table

__all__ = ["distill_seconds", "evaluation_clocks", "git_revision", "read_clocks", "stage_lines", "timed_results"]

STAGES = ("index", "cache", "kernels", "distill", "evaluate")


def read_clocks(layout: Layout) -> list[dict[str, Any]]:
    """The clock sidecars that are there, by file name. They are absent where a stage came out of a cache."""
    return [read_mapping(path) for path in sorted(layout.clocks.glob("*.json"))] if layout.clocks.is_dir() else []


def evaluation_clocks(clocks: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Readings of every evaluation by (method, distil encoder, eval encoder, protocol, views)."""
    rows = [row for sidecar in clocks if sidecar.get("stage") == "evaluate" for row in sidecar.get("rows") or []]
    return {tuple(row.get(key) for key in KEYS): row for row in rows}


def timed_results(results: Path, clocks: list[dict[str, Any]]) -> bytes:
    """``results.parquet`` with the columns seconds and peak_memory_mb, null where they were not measured here, and git.

    The latter is the revision of the checkout the report is written in (``-dirty`` behind it when files differ), null
    outside of one. It stands here because a revision of the documentation alone must not change an artifact.
    """
    table = read_table(results)
    measured = evaluation_clocks(clocks)
    found = [measured.get(tuple(row[k] for k in KEYS), {}) for row in table.select(list(KEYS)).to_pylist()]
    for name in ("seconds", "peak_memory_mb"):
        table = table.append_column(name, pa.array([row.get(name) for row in found], pa.float64()))
    table = table.append_column("git", pa.array([git_revision()] * len(table), pa.string()))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def git_revision() -> str | None:
    """``git describe`` of the working folder; ``None`` where there is no git or no commit."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def stage_lines(clocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per sidecar in pipeline order, and an empty one for each stage without any."""
    whole = {c["stage"] for c in clocks if c.get("rows")}  # a stage that sums up its own items
    lines: list[dict[str, Any]] = [
        {k: c.get(k) for k in ("stage", "item", "seconds", "peak_memory_mb", "device", "images_per_second")}
        for c in clocks
        if c.get("rows") or c.get("stage") not in whole
    ]
    blank = dict.fromkeys(("item", "seconds", "peak_memory_mb", "device", "images_per_second"))
    present = {line["stage"] for line in lines}
    lines += [{"stage": stage} | blank for stage in STAGES if stage not in present]
    order = {stage: i for i, stage in enumerate(STAGES)}
    return sorted(lines, key=lambda s: (order.get(s["stage"], len(order)), str(s["stage"]), str(s["item"] or "")))


def distill_seconds(clocks: list[dict[str, Any]], headline: dict[str, Any]) -> float | None:
    """What the distillation of the headline took, ``None`` where it was not measured here."""
    item = item_name(f"{headline['encoder']}-{headline['method']}")
    for clock in clocks:
        if clock.get("stage") == "distill" and clock.get("item") == item:
            seconds: float | None = clock.get("seconds")
            return seconds
    return None
