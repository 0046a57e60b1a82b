"""Settings overrides, ``distill.steps=10``: checked first, then written into ``params.yaml`` whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.editing import editor, put
from ..config.loading import load_settings, parse_settings
from ..config.reading import UNREADABLE, read_yaml
from ..errors import SettingsError
from ..storage.files import write_bytes

__all__ = ["apply_overrides", "parse_override"]

PARAMETERS = "params.yaml"


def parse_override(text: str) -> tuple[list[str], Any]:
    """``[params.yaml:]a.b=value`` as path and YAML value. Raises ``SettingsError`` when it is not of that form."""
    name, equals, value = text.partition("=")
    file, colon, key = name.rpartition(":")
    path = [part.strip() for part in key.split(".")]
    if not equals or not all(path):
        raise SettingsError(f"the override {text!r} must read section.key=value, e.g. distill.steps=100")
    if colon and file != PARAMETERS:
        raise SettingsError(f"the override {text!r} names the file {file}; only {PARAMETERS} holds settings")
    try:
        return path, read_yaml(value)
    except UNREADABLE as error:
        said = " ".join(str(error).split())
        raise SettingsError(f"the override {text!r} has a value that is not YAML: {said}") from error


def apply_overrides(root: Path, overrides: Sequence[str]) -> bool:
    """Write ``overrides`` into ``params.yaml`` as ``dvc exp run -S`` does; comments and order are kept.

    Everything is checked before a byte is written, and ``params.yaml`` is checked when there is no override too.
    Returns whether the file changed. Raises ``SettingsError``.
    """
    path = root / PARAMETERS
    load_settings(path)
    if not overrides:
        return False
    before = path.read_text(encoding="utf-8")
    document = editor().load(before) or {}
    for override in overrides:
        _set(document, override)
    stream = io.StringIO()
    editor().dump(document, stream)
    after = stream.getvalue()
    values = read_yaml(after)
    parse_settings(values, source=f"{PARAMETERS} with the overrides")
    if values == read_yaml(before):
        return False  # nothing but the layout would change
    write_bytes(path, after.encode("utf-8"))
    return True


def _set(document: Any, override: str) -> None:
    keys, value = parse_override(override)
    section = document
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise SettingsError(f"the override {override!r}: {'.'.join(keys[:depth])} holds a value, not a section")
    put(section, keys[-1], value)
