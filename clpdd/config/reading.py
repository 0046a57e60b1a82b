"""YAML 1.2 without surprises: what ``dvc exp run -S`` writes is read as it is meant.

In YAML 1.2 ``no``, ``yes``, ``on``, ``off``, ``1:30`` and ``2024-01-01`` are text, ``010`` is ten, and the only truth
values are ``true`` and ``false``.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode

from ..errors import SettingsError

__all__ = ["UNREADABLE", "read_yaml", "written"]

UNREADABLE = (YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What broken text raises, and what constructors trip over when a tag does not fit its value (``!!int ''``)."""


class _Constructor(SafeConstructor):
    """Nothing is constructed but plain values; a key stands once."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> Any:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise SettingsError(f"line {line}: a key must be a plain word, got {key!r}")
            if key in seen:
                raise SettingsError(f"line {line}: the key {key!r} stands twice (first on line {seen[key]}): keep one")
            seen[key] = line
        return super().construct_mapping(node, deep=deep)

    def text(self, node: ScalarNode) -> str:
        """A scalar as it is written."""
        return str(node.value)


class _AsWritten(_Constructor):
    """Every scalar as the text that stands in the file."""


for _kind in ("timestamp", "value"):  # kinds of YAML 1.1
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_kind}", _Constructor.text)
for _kind in ("null", "bool", "int", "float"):
    _AsWritten.add_constructor(f"tag:yaml.org,2002:{_kind}", _AsWritten.text)


def read_yaml(text: str) -> Any:
    """The values of a YAML 1.2 document; ``None`` of an empty one.

    Raises ``SettingsError`` for a repeated key or one that is no plain word, and ``UNREADABLE`` for what is no YAML.
    """
    values = _read(text, _Constructor)
    _refuse_loops(values, set(), set())
    return values


def _refuse_loops(value: Any, above: set[int], done: set[int]) -> None:
    """Raise ``ValueError`` where an alias stands within what it stands for."""
    if not isinstance(value, (dict, list)) or id(value) in done:
        return
    if id(value) in above:
        raise ValueError("an alias stands within what it stands for")
    above.add(id(value))
    for inner in value.values() if isinstance(value, dict) else value:
        _refuse_loops(inner, above, done)
    above.remove(id(value))
    done.add(id(value))


def _read(text: str, constructor: type[SafeConstructor]) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = constructor
    return yaml.load(text)


def written(text: str, values: Any, location: tuple[Any, ...]) -> str | None:
    """The scalar at ``location`` (keys and positions) of ``values``, as it stands in the ``text`` they were read from.

    The last key may itself be what is looked for: a key that is no text. ``None`` where it cannot be found.
    """
    try:
        raw = _read(text, _AsWritten)
    except (SettingsError, *UNREADABLE):
        return None
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if isinstance(values, dict) and isinstance(raw, dict) and len(values) == len(raw):
            keys = list(values)
            key = part if part in values else next((key for key in keys if str(key) == str(part)), None)
            if key not in values:
                return None
            position = keys.index(key)
            if last and not isinstance(keys[position], str):
                return str(list(raw)[position])
            values, raw = values[key], list(raw.values())[position]
        elif isinstance(values, list) and isinstance(raw, list) and isinstance(part, int) and part < len(values):
            values, raw = values[part], raw[part]
        else:
            return None
    return raw if isinstance(raw, str) else None
