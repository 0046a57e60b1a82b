"""Digests of files by content, remembered so that a file that was not written since is not read again."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ArtifactError
from .files import explain_os_errors, read_json, sha256_file, write_json

__all__ = ["RememberedDigests"]


class RememberedDigests:
    """SHA-256 of files. One is read again when its size, its inode, or the time of any change to it differs.

    The time of a change of the inode is among them: a file that was put in the place of another under its size and its
    date is read as well.

    Args:
        memory: JSON file to remember in; a missing or damaged one only means that everything is read once more.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            found = read_json(memory)
        except ArtifactError:
            found = None
        self._known: dict[str, list[str]] = found if isinstance(found, dict) else {}
        self._asked: dict[str, list[str]] = {}

    def of(self, path: Path) -> str:
        """Hex SHA-256 of the file's bytes. Raises ``ResourceError`` when it cannot be read."""
        key = os.path.abspath(path)
        with explain_os_errors("read", path):
            status = os.stat(path)
        stamp = f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        known = self._known.get(key)
        fresh = isinstance(known, list) and len(known) == 2 and known[0] == stamp
        digest = known[1] if fresh and known is not None else sha256_file(path)
        self._asked[key] = [stamp, digest]
        return digest

    def save(self) -> None:
        """Remember what was asked for, and forget what was not."""
        if self._asked != self._known:
            write_json(self._memory, self._asked)
