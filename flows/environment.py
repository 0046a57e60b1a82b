"""Prefect's surroundings: telemetry off, its files in the project, an unhurried start."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["ROOT", "prepare"]


def _project(start: Path) -> Path:
    """The nearest folder from ``start`` upwards that holds a ``dvc.yaml``; ``start`` where none does."""
    return next((folder for folder in (start, *start.parents) if (folder / "dvc.yaml").is_file()), start)


ROOT = _project(Path.cwd())
"""The project's folder: the one that the process was started in, or the nearest above it with a ``dvc.yaml``."""


def prepare() -> None:
    """Set what is not set yet; nothing when Prefect was imported before and has read its settings already."""
    if "prefect" in sys.modules:
        return
    defaults = {
        "PREFECT_HOME": str(ROOT / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # the default of 20 s is short on a busy machine; later starts take a second
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
