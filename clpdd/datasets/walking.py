"""Which files below a folder are looked at: the one rule, for making an index and for classifying alike.

Hidden files and folders (``.cache``, ``._x.png``) and what file managers leave behind are passed over. Links are
followed, wherever they lead; one that leads to a folder that is being walked already, or has been, is not walked again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .decode import SUFFIXES
from .listing import printable

__all__ = ["Identity", "entries", "files_below", "identity", "is_clutter", "is_folder", "looks_like_image"]

_CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}

Identity = tuple[int, int]
"""Device and inode of a folder."""


def is_clutter(name: str) -> bool:
    """Whether a file or folder of that name is passed over."""
    return name.startswith(".") or name.lower() in _CLUTTER


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, without clutter. Raises ``DataError`` where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            kept = [entry for entry in found if not is_clutter(entry.name)]
    except OSError as error:
        raise DataError(
            f"the folder {printable(str(folder))} cannot be read: {(error.strerror or '').lower()}"
        ) from error
    return sorted(kept, key=lambda entry: entry.name)


def identity(path: str | os.PathLike[str]) -> Identity:
    """What is the same of two paths that lead to one folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def looks_like_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return name.lower().endswith(SUFFIXES)


def files_below(folder: Path, above: tuple[Identity, ...] = ()) -> Iterator[tuple[os.DirEntry[str], str | None]]:
    """Every file below ``folder``, in no particular order, and why it cannot be used, where it cannot.

    Args:
        above: folders that ``folder`` lies in: links that lead back to them are not walked.
    """
    seen = {identity(folder)}
    pending = [(folder, {*above, *seen})]
    while pending:
        current, chain = pending.pop()
        for entry in entries(current):
            if not is_folder(entry):
                leads = not entry.is_symlink() or os.path.exists(entry.path)
                yield entry, None if leads else "is a link that leads nowhere or to itself"
                continue
            own = identity(entry.path)
            if own in chain:
                yield entry, "is a link to a folder that it lies in"
            elif own in seen:
                yield entry, "is a link to a folder that is among the others already"
            else:
                seen.add(own)
                pending.append((Path(entry.path), chain | {own}))
