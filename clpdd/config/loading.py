"""Settings files: YAML without surprises, and refusals in plain words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from .placing import placed
from .reading import UNREADABLE, read_yaml
from .settings import Settings

__all__ = ["load_settings", "parse_settings"]


def load_settings(
    path: Path | str = "params.yaml", place: bool = True, change: Callable[[Any], Any] | None = None
) -> Settings:
    """Read and check a settings file. Its paths are relative to its own folder; they come relative to the working one.

    Args:
        place: ``False`` leaves paths as they are written.
        change: what to make of the file's values before they are checked.

    Raises:
        SettingsError: naming the file and, for each problem, the key, the value, what is allowed and the nearest
            known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist: run in the project's folder, or pass --params FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as UTF-8 text: {error}") from error
    try:
        values = read_yaml(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except UNREADABLE as error:
        raise SettingsError(f"{path} is not plain YAML: {_told(error)}") from error
    values = {} if values is None else values
    settings = parse_settings(values if change is None else change(values), source=str(path), text=text)
    return placed(settings, path.parent) if place else settings


def _told(error: Exception) -> str:
    """What a YAML reader says, with line and column in front; elsewhere its first words."""
    mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not said:
        return " ".join(str(error).split())
    begun, since = getattr(error, "context", None), getattr(error, "context_mark", None)
    before = f" ({begun} from line {since.line + 1} on)" if begun and since is not None else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}{before}"


def parse_settings(values: Any, source: str = "settings", text: str | None = None) -> Settings:
    """Check a nested mapping of settings; missing keys take their defaults. Raises ``SettingsError``.

    ``text`` is what ``values`` were read from: problems then show what is written there.
    """
    if not isinstance(values, dict):
        raise SettingsError(f"{source} must hold a mapping of settings, not {type(values).__name__}")
    return Settings.checked(values, source, text)
