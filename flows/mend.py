"""DVC's own files after a kill: ``python -m flows.mend`` before ``dvc repro``.

DVC writes ``dvc.lock`` and ``.dvc/tmp/rwlock`` in place; a kill at that moment leaves half a file, which the next DVC
refuses ("is invalid", "JSON structure is corrupted"). Both can be made again: without ``dvc.lock`` every stage is
taken from DVC's run cache or from the work folder, and the same file comes out. It imports what it needs when it runs:
DVC is slow to import.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

__all__ = ["mend"]


def _whole_lock(text: str) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except (Invalid, yaml.YAMLError):
        return False
    return True


def _whole_rwlock(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


_FILES: dict[str, Callable[[str], bool]] = {"dvc.lock": _whole_lock, ".dvc/tmp/rwlock": _whole_rwlock}


def mend(root: Path, patience: float = 0.5) -> list[str]:
    """Remove what a killed DVC has left half-written in the project ``root``; the names of the removed files.

    A file is judged twice, ``patience`` seconds apart: a living DVC may be writing it just now.
    """
    removed = []
    for name, whole in _FILES.items():
        path = root / name
        for attempt in range(2):
            try:
                text = path.read_text(encoding="utf-8")
            except FileNotFoundError:
                break
            except UnicodeDecodeError:
                text = ""
            if whole(text):
                break
            if attempt:
                path.unlink(missing_ok=True)
                removed.append(name)
            else:
                time.sleep(patience)
    return removed


if __name__ == "__main__":
    for name in mend(Path.cwd()):
        print(f"{name} was cut by a kill and is made again", file=sys.stderr)
