"""Tar archives read in place: nothing is unpacked, so that nothing can be written anywhere."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

from ...errors import DataError
from ..listing import File
from ..walking import is_clutter
from .places import safe_name

__all__ = ["members", "nested_members", "read_members"]

_LARGEST = 1 << 30  # bytes of one member read into memory


@contextlib.contextmanager
def _opened(path: Path, mode: str) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # overloads take literal modes alone
            yield archive
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}): download it again") from error


def _files(archive: tarfile.TarFile, where: str, end: int | None) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive, without clutter (``._x.png``, which a Mac packs beside ``x.png``).

    Links and devices, and names that leave the archive, are refused.
    """
    place = 0
    for member in archive:
        place = member.offset_data + (0 if member.isdir() else -(-member.size // 512) * 512)
        safe_name(member.name.removeprefix("./"), where)
        if member.isdir() or any(map(is_clutter, member.name.removeprefix("./").split("/"))):
            continue
        if not member.isreg() or member.issparse():
            raise DataError(f"{where}: the member {member.name!r} is no plain file: that is refused")
        if end is not None and member.offset_data + member.size > end:
            raise DataError(f"{where} is damaged or cut short (within {member.name!r}): download it again")
        yield member
    if end is not None:  # tarfile takes a damaged header, or none, for the end
        assert archive.fileobj is not None
        archive.fileobj.seek(place)
        block = archive.fileobj.read(512)
        if len(block) < 512 or any(block):
            raise DataError(f"{where} is damaged or cut short (after {place} bytes): download it again")


def members(path: Path) -> Iterator[File]:
    """The files in an uncompressed archive, as stretches of it, in its order. Raises ``DataError``."""
    text = path.as_posix()
    with _opened(path, "r:") as archive:
        for member in _files(archive, text, path.stat().st_size):
            yield File(text, member.name.removeprefix("./"), "", member.offset_data, member.size)


def nested_members(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, File]]:
    """The files in the archives ``NAME.tar`` that an uncompressed archive holds: ``(NAME, file)`` for the wanted."""
    text = path.as_posix()
    with _opened(path, "r:") as outer:
        for member in _files(outer, text, path.stat().st_size):
            name = member.name.removeprefix("./").removesuffix(".tar")
            if name not in wanted:
                continue
            where = f"{text}, member {member.name}"
            stretch = outer.extractfile(member)
            assert stretch is not None
            try:
                with tarfile.open(fileobj=stretch, mode="r:") as inner:
                    for found in _files(inner, where, member.size):
                        offset = member.offset_data + found.offset_data
                        yield name, File(text, f"{name}/{found.name.removeprefix('./')}", "", offset, found.size)
            except (tarfile.TarError, EOFError) as error:
                raise DataError(f"{where} is damaged or cut short ({error}): download it again") from error


def read_members(path: Path, wanted: Collection[str]) -> dict[str, bytes]:
    """Bytes of the members whose last path component is wanted, of a plain or compressed archive.

    Raises ``DataError`` for a damaged archive, or one that lacks any of them.
    """
    found: dict[str, bytes] = {}
    with _opened(path, "r:*") as archive:
        for member in _files(archive, str(path), None):
            name = member.name.rsplit("/", 1)[-1]
            if name in wanted:
                if member.size > _LARGEST:
                    raise DataError(f"{path}: the member {member.name!r} claims {member.size} bytes: that is refused")
                stretch = archive.extractfile(member)
                assert stretch is not None
                found[name] = stretch.read()
                if len(found[name]) != member.size:
                    raise DataError(f"{path} is damaged or cut short (within {member.name!r}): download it again")
    lacking = sorted(set(wanted) - found.keys())
    if lacking:
        raise DataError(f"{path} holds no {lacking[0]}: it is another archive, or cut short")
    return found
