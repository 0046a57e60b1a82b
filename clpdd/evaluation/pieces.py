"""A finished piece of work as a sealed JSON file: read back as it was written, or not at all."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from ..storage.files import compact_json, read_json, sha256_bytes, write_bytes

__all__ = ["read_piece", "write_piece"]

log = logging.getLogger(__name__)


def write_piece(file: Path, piece: dict[str, Any], code: str = "") -> None:
    """Write JSON values with their digest, and the digest of the code that made them where the folder lacks it."""
    text = compact_json(piece)
    write_bytes(file, compact_json({"code": code, "sha256": sha256_bytes(text.encode()), "piece": piece}).encode())


def read_piece(file: Path, code: str = "") -> dict[str, Any] | None:
    """A piece of an earlier run; ``None`` when there is none, or (said) when it is not what was written.

    ``None`` as well when other ``code`` made it.
    """
    if not file.exists():
        return None
    with contextlib.suppress(ArtifactError, AttributeError, TypeError):
        found = read_json(file)
        piece: dict[str, Any] = found.get("piece")
        if found.get("sha256") == sha256_bytes(compact_json(piece).encode()):
            if found.get("code", "") == code:
                return piece
            log.info("%s was made by other code: it is made again", file)
            return None
    log.warning("%s was altered since it was written: it is made again", file)
    return None
