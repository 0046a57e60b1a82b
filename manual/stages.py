"""The stages of the pipeline, from ``dvc.yaml``: what each reads and writes, and which settings run it again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from clpdd.storage.layout import SPLITS

from .markup import code, table

__all__ = ["stages_reference"]

_HEAD = ["stage", "reads", "writes", "runs again when these settings change"]


def stages_reference(pipeline: Path) -> str:
    """A table, a row per stage. Library files, which every stage lists as well, are left out."""
    stages: dict[str, Any] = yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"]
    rows = []
    for name, stage in stages.items():
        outputs = [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
        settings = "<br>".join(code(key) for key in stage.get("params", []))
        rows.append([code(name), _files(stage.get("deps", [])), _files(outputs), settings])
    return table(_HEAD, rows)


def _files(entries: Iterable[Any]) -> str:
    """Artifacts, a line per folder; the splits in a folder are listed behind it."""
    lines: dict[str, list[str]] = {}
    for entry in entries:
        path = str(entry if isinstance(entry, str) else next(iter(entry)))  # outputs may be mappings to their options
        if not path.startswith("data/"):
            continue
        shown = PurePosixPath(re.sub(r"\$\{item\.(\w+)\}", lambda key: key[1].upper(), path).removeprefix("data/"))
        if shown.stem in SPLITS:
            lines.setdefault(str(shown.parent), []).append(shown.stem)
        else:
            lines.setdefault(str(shown), [])
    return "<br>".join(f"{code(path)}{': ' if splits else ''}{', '.join(splits)}" for path, splits in lines.items())
