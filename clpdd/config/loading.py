"""Settings files: YAML without surprises, and refusals in plain words."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import SettingsError
from .reading import UNREADABLE, read_yaml, written
from .settings import Settings
from .sources import EncoderOptions
from .variants import Variant

__all__ = ["load_settings", "parse_settings"]


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read and check a settings file.

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
        where = " ".join(str(error).split())
        raise SettingsError(f"{path} is not plain YAML: {where}") from error
    return parse_settings(values if values is not None else {}, source=str(path), text=text)


def parse_settings(values: Any, source: str = "settings", text: str | None = None) -> Settings:
    """Check a nested mapping of settings; missing keys take their defaults. Raises ``SettingsError``.

    ``text`` is what ``values`` were read from: problems then show what is written there.
    """
    if not isinstance(values, dict):
        raise SettingsError(f"{source} must hold a mapping of settings, not {type(values).__name__}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem, values, text)}" for problem in error.errors())
        raise SettingsError(f"{source} has settings that cannot be used:\n{problems}") from None


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    section: Any = Settings
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields:
            section = section.model_fields[part].annotation
        elif section in (dict[str, EncoderOptions], dict[str, Variant]):
            section = section.__args__[1]
        else:
            return []
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _explain(problem: Any, values: Any = None, text: str | None = None) -> str:
    location = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if text is not None and (quoted := _unquoted(problem, location, values, text)):
        return f"{key}: {quoted}"
    message = problem["msg"].removeprefix("Value error, ")
    value = repr(problem["input"])
    got = f" (got {value if len(value) <= 60 else value[:57] + '...'})" if problem["type"] != "value_error" else ""
    told = message[0].lower() + message[1:] if message[:5] == "Input" else message
    return f"{key}: {told}{got}" if key else f"{told}{got}"  # what concerns several sections names them itself


def _unquoted(problem: Any, location: tuple[Any, ...], values: Any, text: str) -> str | None:
    """What to say of a word that needs quotes to be text, or of one that is no truth value; ``None`` of all else."""
    given = problem["input"]
    if problem["type"] == "string_type" and (given is None or isinstance(given, (bool, int, float))):
        found = written(text, values, location)
        if found is None:
            return None
        kind = "nothing" if given is None else "a truth value" if isinstance(given, bool) else "a number"
        return f'must be text, but {found or "an empty value"} is {kind}: put it in quotes, "{found}"'
    if problem["type"] == "bool_type" and str(given).lower() in {"yes", "no", "on", "off", "y", "n"}:
        return f"must be true or false, and {given} is text in YAML 1.2: write {str(given.lower() in _YES).lower()}"
    return None


_YES = {"yes", "on", "y"}
