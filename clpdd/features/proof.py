"""Which files of an unfinished store are whole, so that they need not be made again."""

from __future__ import annotations

import logging
from pathlib import Path

from ..errors import ArtifactError
from ..storage.files import flush, read_json, remove, sha256_file, write_json

__all__ = ["Proven", "sync"]

log = logging.getLogger(__name__)

_RECORD = "shards"


class Proven:
    """Files known to be whole: name in the store -> SHA-256, recorded after the file is safe on disk.

    Every rank keeps a record of its own in ``folder``; rank 0 takes in those of the others.
    """

    def __init__(self, store: Path, folder: Path, rank: int = 0) -> None:
        self.store, self.folder = store, folder
        self.record = folder / (f"{_RECORD}-{rank}.json" if rank else f"{_RECORD}.json")
        self.hashes: dict[str, str] = {}

    def add(self, name: str) -> None:
        file = self.store / name
        sync(file)
        self.hashes[name] = sha256_file(file)
        write_json(self.record, self.hashes)

    def merge(self) -> None:
        """Take in the records of the other ranks, none of which is at work."""
        others = sorted(self.folder.glob(f"{_RECORD}-*.json"))
        for other in others:
            self.hashes |= _read(other)
        if others:
            write_json(self.record, self.hashes)
        for other in others:
            remove(other)

    def recall(self) -> None:
        """Keep the files that are what earlier runs recorded; remove every other file of the store."""
        self.hashes = _read(self.record)
        self.merge()
        recorded = self.hashes
        self.hashes = {
            name: digest
            for name, digest in recorded.items()
            if (self.store / name).is_file() and sha256_file(self.store / name) == digest
        }
        altered = sorted(recorded.keys() - self.hashes.keys())
        if altered:
            log.warning(
                "%d finished files in %s are missing or were altered and are made again: %s",
                len(altered),
                self.store,
                ", ".join(altered[:3]) + (", ..." if len(altered) > 3 else ""),
            )
        # Zarr leaves its own temporary files behind when it is killed; they must not be published.
        for file in self.store.rglob("*"):
            if file.is_file() and file.relative_to(self.store).as_posix() not in self.hashes:
                file.unlink()


def _read(record: Path) -> dict[str, str]:
    if not record.exists():
        return {}
    try:
        return dict(read_json(record))
    except (ArtifactError, TypeError, ValueError) as error:
        log.warning("a list of finished shards is damaged (%s): its shards are encoded again", error)
        return {}


def sync(file: Path) -> None:
    """Flush a file and its folder's entry."""
    flush(file)
    flush(file.parent)
