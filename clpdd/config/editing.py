"""Settings files changed in place: values are replaced, comments and order stay."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

__all__ = ["edited", "editor", "put"]


def editor() -> YAML:
    """A YAML reader and writer that keeps comments, quotes and line breaks."""
    made = YAML()
    made.preserve_quotes = True
    made.width = 4096
    made.representer.add_representer(
        type(None), lambda representer, value: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return made


def plain(value: Any) -> Any:
    """``value`` as it stands on one line: lists and mappings in flow style."""
    if isinstance(value, Mapping):
        made: Any = CommentedMap({key: plain(inner) for key, inner in value.items()})
    elif isinstance(value, list):
        made = CommentedSeq([plain(inner) for inner in value])
    else:
        return value
    made.fa.set_flow_style()
    return made


def put(section: Any, key: str, value: Any) -> None:
    """Set ``section[key]``, on one line. Comments beside the key and up to the next one stay."""
    old = section.get(key)
    if isinstance(old, (CommentedMap, CommentedSeq)) and old and not old.fa.flow_style():
        # ruamel hangs what follows a value that fills lines of its own on its last line, which is about to go
        before, beside = (section.ca.items.get(key) or [None] * 4)[1:3]
        own = beside.value.partition("\n")[0] if beside is not None else ""
        mark = beside.start_mark if beside is not None else CommentMark(0)
        section.ca.items[key] = [None, before, CommentToken(f"{own}\n{_after(old)}", mark, None), None]
    section[key] = plain(value)


def _after(value: Any) -> str:
    """Blank lines and comments that stand after a value written on lines of its own."""
    last, place = (len(value) - 1, 0) if isinstance(value, CommentedSeq) else (list(value)[-1], 2)
    inner = value[last]
    if isinstance(inner, (CommentedMap, CommentedSeq)) and inner and not inner.fa.flow_style():
        return _after(inner)
    comment = value.ca.items.get(last)
    return comment[place].value.partition("\n")[2] if comment and comment[place] is not None else ""


def edited(text: str, changes: Mapping[str, Any], whole: tuple[str, ...] = ()) -> str:
    """``text`` with nested ``changes``. Sections are entered; what ``whole`` names at the top is replaced entirely."""
    document = editor().load(text) or CommentedMap()

    def change(section: Any, values: Mapping[str, Any], top: bool) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping) and not (top and key in whole):
                if not isinstance(section.get(key), Mapping):
                    section[key] = CommentedMap()
                change(section[key], value, False)
            else:
                put(section, key, value)

    change(document, changes, True)
    stream = io.StringIO()
    editor().dump(document, stream)
    return stream.getvalue()
