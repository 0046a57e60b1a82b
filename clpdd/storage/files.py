"""Files written whole or not at all, and the digests that prove it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ArtifactError, ResourceError

__all__ = [
    "canonical_json",
    "compact_json",
    "explain_os_error",
    "explain_os_errors",
    "flush",
    "link_tree",
    "publish",
    "read_json",
    "remove",
    "remove_leftovers",
    "seal",
    "sha256_bytes",
    "sha256_file",
    "sha256_tree",
    "staged",
    "sweep",
    "try_writing",
    "write_bytes",
    "write_json",
    "write_stream",
]

_TEMPORARY = ".clpdd-tmp-"

_swept: set[Path] = set()

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again, finished work is kept",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again, finished work is kept",
    errno.EROFS: "the file system is read-only: choose a writable folder",
    errno.EACCES: "permission denied: make the folder writable or choose another",
    errno.EPERM: "operation not permitted: make the folder writable or choose another",
    errno.ENOTDIR: "a part of the path is a file, not a folder: move that file away",
    errno.EISDIR: "a folder stands where a file is needed: move that folder away",
    errno.EFBIG: "the file is larger than the file system or a limit (ulimit -f) allows: choose another folder",
    errno.ENOMEM: "memory ran out: lower the batch sizes in params.yaml",
    errno.EIO: "the disk reports an input/output error: check it, or choose another",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n) or lower runtime.workers",
}


@contextlib.contextmanager
def explain_os_errors(action: str, path: Path | str) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``ResourceError`` that says what to do.

    ``action`` completes "could not ..."; errors without a known remedy (a file that vanished, say) keep the
    system's own words.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(f"could not {action} {path}: {explain_os_error(error)}") from error


def explain_os_error(error: OSError) -> str:
    """What happened and what to do about it."""
    return _REMEDIES.get(error.errno or 0, (error.strerror or str(error)).lower())


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks. Raises ``ResourceError`` when it cannot be read."""
    with explain_os_errors("read", path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(path: Path | str) -> str:
    """Hex SHA-256 over the relative names and contents of a file or of every file below a folder."""
    path = Path(path)
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist: run the stage that makes it")
    listing = [f"{p.relative_to(path).as_posix()}\0{sha256_file(p)}\n" for p in sorted(path.rglob("*")) if p.is_file()]
    return sha256_bytes("".join(listing).encode())


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys; NaN and infinity are refused (they are not JSON)."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def compact_json(value: Any) -> str:
    """As ``canonical_json``, but on one line: for matrices, of which indented JSON makes a line a number."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def flush(path: Path) -> None:
    """Flush a file's bytes, or a folder's entries, so that what was written or renamed survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically: temporary name, fsync, rename, fsync of the folder."""
    with _atomic(Path(path)) as file:
        file.write(data)


def write_stream(path: Path | str, parts: Iterable[bytes | memoryview]) -> str:
    """``write_bytes`` of what ``parts`` give, one after another. Returns the hex SHA-256 of all of them.

    Each part is written and hashed before the next is asked for, so that no more than one of them need exist.
    """
    digest = hashlib.sha256()
    with _atomic(Path(path)) as file:
        for part in parts:
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that bears the name ``path`` when the block has ended well, and is gone otherwise."""
    temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{path.name}"
    with explain_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:
            _swept.add(path.parent)
            sweep(path.parent)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)


def try_writing(path: Path) -> None:
    """Raise ``ResourceError`` where ``write_bytes`` to ``path`` would: before the work whose result goes there."""
    with explain_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=path.parent):
            pass


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as canonical JSON, atomically."""
    write_bytes(path, canonical_json(value).encode())


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises ``ArtifactError`` naming the file when it is missing or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: run the stage that makes it") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete it and run the stage that makes it") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left anywhere below ``folder``, which nobody else may be writing to."""
    for leftover in list(folder.rglob(f"{_TEMPORARY}*")):
        remove(leftover)


def remove(path: Path | str) -> None:
    """Remove a file or a folder; nothing happens when it is not there."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in ``folder``; temporary files of live ones stay."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        owner = leftover.name.removeprefix(_TEMPORARY).split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            remove(leftover)


@contextlib.contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A private name beside ``target``, to be renamed to it; gone afterwards, as are those of killed processes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent)
    staging = target.parent / f"{_TEMPORARY}{os.getpid()}-{target.name}"
    remove(staging)
    try:
        yield staging
    finally:
        remove(staging)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def link_tree(source: Path, target: Path) -> None:
    """Reproduce ``source`` (file or folder) at ``target`` with hard links, or copies where links are refused."""

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copyfile(one, other)
        return other

    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)
    else:
        link(str(source), str(target))


def publish(source: Path, target: Path) -> None:
    """Put a finished ``source`` in place of ``target``, whole: a half-copied artifact never bears the name.

    ``source`` stays where it is (its files are hard-linked where the file system allows), so that a run killed
    right after publishing has nothing to do again. Leftovers of earlier, killed publications are removed.
    """
    with explain_os_errors("write", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        for leftover in target.parent.glob(f"{_TEMPORARY}*"):  # of whatever process: the caller alone publishes here
            if re.fullmatch(r"\d+-(old-)?" + re.escape(target.name), leftover.name.removeprefix(_TEMPORARY)):
                remove(leftover)
        temporary = target.parent / f"{_TEMPORARY}{os.getpid()}-{target.name}"
        link_tree(source, temporary)
        if target.is_dir() and not target.is_symlink():
            old = target.parent / f"{_TEMPORARY}{os.getpid()}-old-{target.name}"
            os.replace(target, old)  # a folder cannot be replaced; killed here, the name is free, never half a folder
            os.replace(temporary, target)
            remove(old)
        else:
            os.replace(temporary, target)
        flush(target.parent)


def seal(record: dict[str, Any]) -> str:
    """SHA-256 over a record of JSON values without its own entry ``seal``."""
    return sha256_bytes(canonical_json({key: value for key, value in record.items() if key != "seal"}).encode())
