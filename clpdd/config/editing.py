"""Settings files changed in place: values are replaced, comments and order stay."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

__all__ = ["edited", "editor", "plain"]


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
                section[key] = plain(value)

    change(document, changes, True)
    stream = io.StringIO()
    editor().dump(document, stream)
    return stream.getvalue()
