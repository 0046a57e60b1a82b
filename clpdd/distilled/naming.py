"""Class names as names of folders."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

__all__ = ["folder_names", "numbered"]

_LONGEST = 200  # bytes of UTF-8; file systems take 255, and a number may come in front
_PASSED_OVER = {"thumbs.db", "desktop.ini", "__macosx"}  # by readers of image folders, as hidden ones are


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A folder for every class: its own name wherever a folder can bear it, so that tools show what people know.

    Changed are names that hold ``/`` or NUL, begin with a dot, are longer than 200 bytes, or differ from an earlier one
    in case, composition, or dots and spaces at the end alone (macOS and Windows keep such folders as one). Signs and
    names that Windows alone refuses (``a:b``, ``con``) stay: there the folder cannot be made, and its error says so.

    ``torchvision.datasets.ImageFolder`` and its like number classes in the order of their folders' names. Where that is
    not the order of ``class_names``, the label stands in front of each name, ``017-coffee cup``.

    Args:
        class_names: ``C`` non-empty names.

    Returns:
        ``C`` different names of folders; sorted, they are in the order of the labels.
    """
    folders = _own(class_names)
    if not numbered(class_names):
        return folders
    width = max(3, len(str(len(folders) - 1)))
    return [f"{label:0{width}d}-{folder}" for label, folder in enumerate(folders)]


def numbered(class_names: Sequence[str]) -> bool:
    """Whether labels stand in front of the names: their own order is another than that of the labels."""
    folders = _own(class_names)
    return sorted(folders) != folders


def _own(class_names: Sequence[str]) -> list[str]:
    """Names that folders can bear, all of them different."""
    folders: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(class_names):
        plain = whole = _borne(name) or f"class {label}"
        number = 2
        while _seen_alike(plain) in taken:
            plain, number = f"{whole} ({number})", number + 1
        taken.add(_seen_alike(plain))
        folders.append(plain)
    return folders


def _borne(name: str) -> str:
    """What of a name a folder can bear; may be empty."""
    kept = name
    for sign in "/\0":
        kept = kept.replace(sign, " ")
    if kept != name or kept.startswith("."):
        kept = kept.strip().lstrip(". ")
    if kept.lower() in _PASSED_OVER:
        kept = f"class {kept}"
    return kept.encode()[:_LONGEST].decode(errors="ignore")


def _seen_alike(name: str) -> str:
    """The same of names that a file system which ignores case, composition or an end of dots takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).rstrip(". ")
