"""The reference of the settings: types, ranges and defaults from the typed settings, meanings from ``params.yaml``."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from clpdd.config.distill import DistillSettings
from clpdd.config.settings import Settings
from clpdd.config.variants import Variant

from .comments import read_comments
from .markup import code, prose, table

__all__ = ["Entry", "entries", "settings_reference"]

_NAMES = {int: "integer", float: "number", bool: "`true` or `false`", str: "text", type(None): "`null`"}
_TOP = "The top of the file"


@dataclass(frozen=True)
class Entry:
    """One setting.

    Attributes:
        key: dotted path in ``params.yaml``; ``NAME`` stands for a key of the user's own.
        allowed: type and range, in words.
        default: what holds where the file says nothing, as JSON; ``None`` when the setting is a section.
        written: what ``params.yaml`` says, as JSON, where that is not the default.
        meaning: the comment in ``params.yaml``, or the docstring of the field.
    """

    key: str
    allowed: str
    default: str | None
    written: str | None
    meaning: str


def entries(
    params: Path, model: type[BaseModel] = Settings, prefix: str = ""
) -> Iterator[tuple[str, str, list[Entry]]]:
    """(section, its docstring, its settings), section by section; ``""`` is the top of the file."""
    comments = read_comments(params)
    written = yaml.safe_load(params.read_text(encoding="utf-8"))
    yield from _sections(model, prefix, comments, written)


def _sections(
    model: type[BaseModel], prefix: str, comments: dict[str, str], written: Any
) -> Iterator[tuple[str, str, list[Entry]]]:
    rows, below = [], []
    for name, field in model.model_fields.items():
        if model is Variant and name in DistillSettings.model_fields:
            continue  # said once, under distill
        key = f"{prefix}.{name}" if prefix else name
        there = written.get(name) if isinstance(written, dict) else None
        inner = _model(field.annotation)
        if inner is not None and get_origin(field.annotation) is not dict:
            below.append((key, inner, there))
            continue
        if inner is not None:
            below.append((f"{key}.NAME", inner, None))
        rows.append(_entry(key, field, comments, there, known=isinstance(written, dict) and name in written))
    yield prefix, " ".join((model.__doc__ or "").split()), rows
    for key, inner, there in below:
        yield from _sections(inner, key, comments, there)


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section behind an annotation: itself, or what the values of a mapping are."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return _model(get_args(annotation)[1]) if get_origin(annotation) is dict else None


def _entry(key: str, field: FieldInfo, comments: dict[str, str], there: Any, known: bool) -> Entry:
    default = field.get_default(call_default_factory=True)
    differs = known and there != default
    return Entry(
        key=key,
        allowed=_allowed(field.annotation, field.metadata),
        default=json.dumps(default, default=str),
        written=json.dumps(there) if differs else None,
        meaning=comments.get(key) or " ".join((field.description or "").replace("``", "`").split()),
    )


def _allowed(annotation: Any, metadata: list[Any]) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _allowed(inner[0], list(inner[1:]))
    if origin is Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(arm, metadata if arm is not type(None) else []) for arm in inner)
    if origin is list:
        return f"list of {_plural(_allowed(inner[0], []))}{_range(metadata, ' items')}"
    if origin is dict:
        value = "a section" if _model(inner[1]) else _allowed(inner[1], [])
        return f"mapping of names to {value}"
    return f"{_NAMES.get(annotation, getattr(annotation, '__name__', str(annotation)))}{_range(metadata)}"


def _plural(text: str) -> str:
    for one, many in (("integer", "integers"), ("number", "numbers"), ("text", "texts")):
        if text.startswith(one):
            return many + text[len(one) :]
    return text


def _range(metadata: list[Any], unit: str = "") -> str:
    """The bounds among the constraints, in words."""
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    low = high = ""
    for item in flat:
        if isinstance(item, annotated_types.Ge | annotated_types.MinLen):
            low = f"≥ {_number(getattr(item, 'ge', getattr(item, 'min_length', None)))}"
        elif isinstance(item, annotated_types.Gt):
            low = f"> {_number(item.gt)}"
        elif isinstance(item, annotated_types.Le | annotated_types.MaxLen):
            high = f"≤ {_number(getattr(item, 'le', getattr(item, 'max_length', None)))}"
        elif isinstance(item, annotated_types.Lt):
            high = f"< {_number(item.lt)}"
        elif getattr(item, "pattern", None):
            low = f"like `{item.pattern}`"
    bounds = ", ".join(part for part in (low, high) if part)
    return f" ({bounds}{unit})" if bounds else ""


def _number(value: Any) -> str:
    return "2³¹" if value == 2**31 else f"{value:g}" if isinstance(value, float) else str(value)


def settings_reference(params: Path) -> str:
    """The reference as Markdown: a heading and a table per section; every setting has an anchor, its dotted path."""
    parts = []
    for section, about, rows in entries(params):
        parts.append(f"## {code_heading(section) if section else _TOP}\n\n{about}\n")
        body = [
            [
                f'<a id="{row.key}"></a>{code(row.key.rpartition(".")[2])}',
                prose(row.allowed),
                _shown_default(row),
                prose(row.meaning),
            ]
            for row in rows
        ]
        if body:
            parts.append(table(["setting", "allowed", "default", "meaning"], body))
    return "\n".join(parts)


def code_heading(section: str) -> str:
    """``distill.augment`` as a heading whose anchor is the dotted path."""
    return f"`{section}` {{#{section}}}"


def _shown_default(row: Entry) -> str:
    shown = code(row.default or "")
    return f"{shown}<br>in <code>params.yaml</code>: {code(row.written)}" if row.written is not None else shown
