"""Whether a settings file has all sections that DVC follows: DVC itself says so stage by stage, as it gets there."""

from __future__ import annotations

from pathlib import Path

from ..config.reading import read_yaml
from ..config.settings import Settings
from ..errors import SettingsError
from ..storage.files import compact_json

__all__ = ["refuse_missing_sections"]


def refuse_missing_sections(params: Path, pipeline: Path) -> None:
    """Refuse a settings file without a section that a stage of ``pipeline``, a ``dvc.yaml`` that DVC has read, follows.

    Elsewhere what is left out takes its default; DVC compares what is written, and stops where nothing is. Where there
    is no such pipeline, as for one that runs this in another folder, nothing is refused.

    Raises ``SettingsError`` with the lines to add, all of them at once.
    """
    if not pipeline.is_file():
        return
    written = read_yaml(params.read_text(encoding="utf-8")) or {}
    stages = read_yaml(pipeline.read_text(encoding="utf-8"))["stages"].values()
    listed = [key for stage in stages for key in stage.get("params") or []]  # of another file: a mapping
    missing = sorted({key for key in listed if isinstance(key, str) and key in Settings.model_fields} - set(written))
    if missing:
        lines = "".join(f"\n  {_line(key)}" for key in missing)
        raise SettingsError(
            f"{params} has no {', '.join(missing)}, which {pipeline} follows, and DVC stops at what is not written "
            f"there; to take the default, add:{lines}"
        )


def _line(key: str) -> str:
    """``key: default`` as it may stand in the file; a section may be empty."""
    default = Settings.model_fields[key].default
    return f"{key}: {compact_json(default) if isinstance(default, str | int | list) else '{}'}"
