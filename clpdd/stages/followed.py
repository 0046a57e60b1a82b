"""Whether a settings file has all that DVC follows: DVC itself says so stage by stage, as it gets there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.reading import UNREADABLE, read_yaml
from ..config.settings import Settings
from ..errors import SettingsError
from ..storage.files import compact_json

__all__ = ["refuse_missing"]


def refuse_missing(params: Path, pipeline: Path = Path("dvc.yaml")) -> None:
    """Refuse settings that leave out what a stage of ``pipeline`` lists under ``params``.

    Elsewhere what is left out takes its default; DVC compares what is written, and stops where nothing is.

    Raises ``SettingsError`` with the lines to add, all of them at once.
    """
    try:
        written, stages = (read_yaml(path.read_text(encoding="utf-8")) or {} for path in (params, pipeline))
    except (OSError, SettingsError, *UNREADABLE):
        return  # DVC, or whoever reads the settings, says so
    missing = sorted({key for key in _followed(stages) if not _has(written, key.split("."))})
    if missing:
        lines = "\n".join(f"  {_line(key)}" for key in missing)
        raise SettingsError(
            f"{params} has no {', '.join(missing)}, which {pipeline} follows, and DVC stops at what is not written "
            f"there; to take the default, add:\n{lines}"
        )


def _followed(pipeline: Any) -> list[str]:
    """The keys of the settings file that any stage lists; those of other files, a mapping each, are left out."""
    stages = pipeline.get("stages") or {} if isinstance(pipeline, Mapping) else {}
    listed = [key for stage in stages.values() for key in (stage.get("do", stage).get("params") or [])]
    return [key for key in listed if isinstance(key, str)]


def _has(values: Any, path: list[str]) -> bool:
    return not path or (isinstance(values, Mapping) and path[0] in values and _has(values[path[0]], path[1:]))


def _line(key: str) -> str:
    """``key: default`` as it may stand in the file; of a section, that it is empty."""
    field = Settings.model_fields.get(key)
    default = None if field is None else field.get_default(call_default_factory=True)
    return f"{key}: {compact_json(default) if isinstance(default, str | int | list | tuple) else '{}'}"
