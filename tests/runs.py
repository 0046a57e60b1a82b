"""How the tests run a stage, and a method with its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clpdd.config.distill import DistillSettings
from clpdd.config.runtime import RuntimeSettings
from clpdd.config.variants import MethodVariant
from clpdd.stages.project import Run

__all__ = ["run_in", "variant"]


def run_in(work: Path, **runtime: Any) -> Run:
    """Partial work in a folder; images are decoded in this process unless ``workers`` says otherwise."""
    return Run(work=work, runtime=RuntimeSettings(**{"workers": 0} | runtime))


def variant(method: str, settings: DistillSettings | None = None) -> MethodVariant:
    """A method by its own name."""
    return MethodVariant(method, method, settings or DistillSettings())
