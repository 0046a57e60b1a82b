"""The comparison of methods by the clock, and the ablations, as stages of a project."""

from __future__ import annotations

from pathlib import Path

from ..stages.project import Project
from ..storage.work import exclusive
from .ablations import plan_ablations
from .page import write_comparison
from .plan import Job, plan
from .run import compare

__all__ = ["ablate", "benchmark"]


def benchmark(project: Project, encoder: str, command: str = "") -> Path:
    """Methods against each other by the clock, on the test split. Returns the page; the table lies beside it."""
    return _compare(project, encoder, plan(project.settings), "benchmark", "test", command)


def ablate(project: Project, encoder: str, command: str = "") -> Path:
    """The paper's ablations, on validation features. Returns the page; the table lies beside it."""
    return _compare(project, encoder, plan_ablations(project.settings), "ablations", "validation", command)


def _compare(project: Project, encoder: str, jobs: list[Job], name: str, judge: str, command: str) -> Path:
    folder = project.layout.comparison(encoder)
    with exclusive(project.layout.work, "benchmark", project.settings.runtime.wait_seconds):
        keys = ("seed", "variants", "distill", "evaluate", "benchmark")
        project.take(name, encoder, folder / f"{name}.parquet", *keys)
        compare(project, encoder, jobs, folder / f"{name}.parquet", judge=judge, command=command)
    tables = [folder / f"{name}.parquet" for name in ("benchmark", "ablations")]
    return write_comparison([table for table in tables if table.exists()], folder / "comparison.html")
