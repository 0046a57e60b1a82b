"""Which settings an artifact was made with: two settings files must not replace each other's artifacts in one folder.

Beside the partial work lies a note for every artifact: the settings file it was made from and what of it decides it.
The same file may change, and what it made is made again; another file with other values is refused while the artifact
is there, since whoever started both would find the results of one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, SettingsError
from .files import read_json, write_json
from .work import differences

__all__ = ["take"]


def take(
    root: Path, params: Path, stage: str, item: str, target: Path, values: Mapping[str, Any], write: bool = True
) -> None:
    """Note that ``target`` is about to be made from the settings file ``params``.

    Args:
        root: the data folder.
        item: which one of the stage's artifacts; empty where it has one.
        values: what of the settings decides it, as JSON values.
        write: whether to write the note, or only to look at the one that is there.

    Raises:
        SettingsError: it was made from another settings file with other values.
    """
    note = root / "work" / "settings" / f"{'-'.join(filter(None, (stage, item.replace('/', '-'))))}.json"
    own: dict[str, Any] = {
        "file": os.path.relpath(os.path.realpath(params), os.path.realpath(root)),
        "values": dict(values),
    }
    held = _read(note)
    if held is not None and held["file"] != own["file"] and held["values"] != own["values"] and target.exists():
        other = os.path.normpath(os.path.join(root, held["file"]))
        raise SettingsError(
            f"{target} was made from {other}, and {params} has other settings "
            f"({differences(held['values'], own['values'])}): give each of them a folder of its own, as in --data "
            f"{root.name}-{params.stem}, or remove {target} to make it anew from {params}"
        )
    if write and held != own:
        write_json(note, own)


def _read(note: Path) -> dict[str, Any] | None:
    """The note; ``None`` where there is none that can be read."""
    if not note.exists():
        return None
    try:
        held = read_json(note)
    except ArtifactError:
        return None
    whole = isinstance(held, dict) and isinstance(held.get("file"), str) and isinstance(held.get("values"), dict)
    return held if whole else None
