"""What lies where the settings say that images are: names, sizes and times of the files, or their bytes.

No image is opened to see this, and nothing of it decides an index: it tells whether one has to be made again.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalogue.datasets import PLACED_BY_SPLIT, entry
from ..config.dataset import DatasetSettings
from ..errors import DataError, first_few
from ..storage.files import canonical_json, sha256_bytes
from .walking import Identity, identity, is_clutter, is_folder

__all__ = ["Seen", "differences", "look"]

_MADE_BESIDE = {"__pycache__", "dvc.lock"}  # by Python and DVC, where a project lies among its images


@dataclass(frozen=True)
class Seen:
    """The files at each place that the settings name.

    Attributes:
        watch: ``"stat"`` or ``"bytes"``: what the marks are made of.
        places: place as written in the settings -> name of a file there -> its mark (size and time, or size and
            digest).
    """

    watch: str
    places: Mapping[str, Mapping[str, str]]

    def summary(self) -> dict[str, Any]:
        """Number, bytes and one digest of the files at each place, as JSON values."""
        return {
            "watch": self.watch,
            "places": {
                place: {
                    "files": len(files),
                    "bytes": sum(int(mark.split()[0]) for mark in files.values()),
                    "digest": _digest(files),
                }
                for place, files in self.places.items()
            },
        }

    def digest(self) -> str | None:
        """One digest over everything; ``None`` where the settings name no place that can be watched."""
        return sha256_bytes(canonical_json(self.summary()).encode()) if self.places else None


def _digest(files: Mapping[str, str]) -> str:
    marks = hashlib.sha256()
    for name in sorted(files):
        marks.update(f"{name}\0{files[name]}\n".encode(errors="surrogateescape"))
    return marks.hexdigest()


def look(settings: DatasetSettings, base: Path = Path("."), made: Iterable[Path] = ()) -> Seen:
    """See what lies at the places of a dataset; places that hold nothing count as empty, the readers refuse them.

    Links are followed, hidden files passed over. Not watched are datasets that come with a library (``digits``), come
    from the Hugging Face hub, or are fetched by torchvision itself (``download: true``).

    Args:
        base: what the paths of the settings are relative to.
        made: folders of the pipeline's own artifacts, which are passed over where images lie beside them.

    Raises:
        DataError: a file or folder cannot be read.
    """
    own = frozenset(os.path.realpath(folder) for folder in made)
    try:
        places = {place: _files(base, place, own) for place in _places(settings, base)}
        if entry(settings.name).layout == "parquet":
            places |= _beside_tables(places, settings, base)
        reading = settings.watch == "bytes"
        return Seen(settings.watch, {place: _marks(found, reading) for place, found in places.items()})
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {(error.strerror or str(error)).lower()}") from error


def _places(settings: DatasetSettings, base: Path) -> list[str]:
    """Files, globs and folders as the settings name them, each once."""
    known = entry(settings.name)
    if known.layout in PLACED_BY_SPLIT or settings.train is not None:
        given = (settings.train, settings.validation, settings.test)
        listed = [item for value in given if value for item in ([value] if isinstance(value, str) else value)]
    elif known.layout == "hf":  # a folder beside the settings may be meant; another root is the library's cache
        listed = [name] if (base / Path(name := known.options["name"]).expanduser()).is_dir() else []
    else:
        listed = [settings.root] if settings.root is not None and not settings.download else []
    return list(dict.fromkeys(listed))


def _files(base: Path, place: str, own: frozenset[str] = frozenset()) -> dict[str, str]:
    """Name -> path of every file at a place; names are relative to its folder, or to ``base`` for files and globs."""
    path = base / Path(place).expanduser()
    if path.is_dir():
        root = os.fspath(path)
        return {os.path.relpath(found, root): found for found in _walk(root, own)}
    pattern = os.fspath(path)
    if not path.is_file():
        pattern = re.sub(r"\{[^{}]*\}", "*", pattern)  # shards as train-{000..127}.tar: any of that name
    found = [pattern] if path.is_file() else glob.glob(pattern, recursive=True)
    return {os.path.relpath(one, base) if not os.path.isabs(one) else one: one for one in found if os.path.isfile(one)}


def _walk(root: str, own: frozenset[str]) -> Iterator[str]:
    """Every file below a folder, links followed, each folder once; those in ``own`` are not entered."""
    pending, entered = [root], set[Identity]()
    while pending:
        folder = pending.pop()
        if identity(folder) in entered or (own and os.path.realpath(folder) in own):
            continue  # a link that leads back up, or what the pipeline has made
        entered.add(identity(folder))
        with os.scandir(folder) as items:
            for item in items:
                if is_clutter(item.name) or item.name in _MADE_BESIDE:
                    continue
                if is_folder(item):
                    pending.append(item.path)
                else:
                    yield item.path


def _beside_tables(
    places: Mapping[str, Mapping[str, str]], settings: DatasetSettings, base: Path
) -> dict[str, dict[str, str]]:
    """Folders of Parquet files whose cells name images that lie beside them."""
    from .sources.parquet_rows import names_files  # pyarrow, and needed for Parquet alone

    tables = [Path(path) for files in places.values() for path in files.values()]
    folders = dict.fromkeys(table.parent for table in tables if names_files(table, settings.image_column))
    shown = {folder: os.path.relpath(folder, base) if not folder.is_absolute() else str(folder) for folder in folders}
    return {f"images beside {shown[folder]}": _files(Path("."), str(folder)) for folder in folders}


def _marks(files: Mapping[str, str], reading: bool) -> dict[str, str]:
    """Name -> size and time of the last change in nanoseconds; or, ``reading``, size and digest of the bytes."""
    if not reading:
        return {name: _stamp(path) for name, path in files.items()}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(_read, files.values()), strict=True))


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        if not os.path.islink(path):
            raise
        return "0 leads nowhere"
    return f"{status.st_size} {status.st_mtime_ns}"


def _read(path: str) -> str:
    if not os.path.isfile(path):  # a pipe would be waited for without end
        return "0 is no file"
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{os.fstat(file.fileno()).st_size} {digest}"


def differences(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each place that is in both and has changed: how many files, and the first of them."""
    lines = []
    for place in now.keys() & before.keys():
        old, new = before[place], now[place]
        kinds = {
            "added": new.keys() - old.keys(),
            "removed": old.keys() - new.keys(),
            "changed": {name for name in new.keys() & old.keys() if new[name] != old[name]},
        }
        told = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
        if told:
            lines.append(f"images changed in {place}: {', '.join(told)}")
    return sorted(lines)


def _some(names: Iterable[str]) -> str:
    return first_few([name.encode("utf-8", "backslashreplace").decode() for name in sorted(names)], 2)
