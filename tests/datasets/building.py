"""A dataset by name, from the tree in a test's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index


def build(tmp_path: Path, name: str, **options: Any) -> dict[str, Index]:
    """The index of every split; the tree lies in ``tmp_path / "root"`` unless ``options`` say otherwise."""
    settings = DatasetSettings(name=name, **({"root": str(tmp_path / "root")} | options))
    paths = build_index(settings, 0, tmp_path / "index")
    return {split: Index.open(path) for split, path in paths.items()}
