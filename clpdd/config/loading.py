"""Settings files: YAML without surprises, and refusals in plain words."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import SettingsError
from .encoder import EncoderOptions
from .settings import Settings
from .variants import Variant

__all__ = ["load_settings", "parse_settings"]


class _Loader(yaml.SafeLoader):
    """YAML without tags (nothing is constructed but plain values) and without duplicate keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise SettingsError(f"line {line}: a key must be a plain word, got {key!r}")
        if key in seen:
            raise SettingsError(f"line {line}: the key {key!r} stands twice (first on line {seen[key]}): keep one")
        seen[key] = line
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


# YAML 1.1 reads 1e-3 as text, for want of a dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


# What PyYAML raises on broken text, and what its constructors trip over when a tag does not fit its value (!!int '').
_UNREADABLE = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


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
        values = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except _UNREADABLE as error:
        where = " ".join(str(error).split())
        raise SettingsError(f"{path} is not plain YAML: {where}") from error
    return parse_settings(values if values is not None else {}, source=str(path))


def parse_settings(values: Any, source: str = "settings") -> Settings:
    """Check a nested mapping of settings; missing keys take their defaults. Raises ``SettingsError``."""
    if not isinstance(values, dict):
        raise SettingsError(f"{source} must hold a mapping of settings, not {type(values).__name__}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
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


_MOVED = {
    "cache.workers": "runtime.workers",
    "distill.checkpoint_every_seconds": "runtime.checkpoint_every_seconds",
    "distill.checkpoint_every_steps": "runtime.checkpoint_every_steps",
    "evaluate.random_draws": "distill.random_draws",
}
"""Keys of earlier versions, and where they went."""


def _explain(problem: Any) -> str:
    location = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        if key in _MOVED:
            return f"{key}: moved to {_MOVED[key]}; set it there"
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    value = repr(problem["input"])
    got = f" (got {value if len(value) <= 60 else value[:57] + '...'})" if problem["type"] != "value_error" else ""
    told = message[0].lower() + message[1:] if message[:5] == "Input" else message
    return f"{key}: {told}{got}" if key else f"{told}{got}"  # what concerns several sections names them itself
