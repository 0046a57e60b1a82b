"""Parquet files in Hugging Face layout: a column of images, a column of integer labels, class names in the metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..config import DatasetSettings
from ..errors import DataError
from .decode import Undecodable
from .listing import BadImages, Labels, Listing, Source, check_class_names, max_file_bytes, nearest, read_file

__all__ = ["expand", "list_parquet", "list_tables"]

_READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: column names of a damaged footer


@dataclass(frozen=True)
class _File:
    path: Path
    row_groups: list[int]  # rows of each
    labels: Labels
    class_names: list[str] | None
    groups: list[str] | None = None


class _ParquetRows(Listing):
    def __init__(self, files: list[_File], split: str, column: str, max_bytes: int) -> None:
        self._files, self._split, self._column, self._max_bytes = files, split, column, max_bytes
        self._starts = np.cumsum([0] + [len(file.labels) for file in files])
        self.labels = np.concatenate([file.labels for file in files])
        if files[0].groups is not None:
            self.groups = [group for file in files for group in file.groups or ()]

    def name(self, row: int) -> str:
        return f"{self._split}-{row:06d}"

    def where(self, row: int) -> str:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return f"{self._files[number].path}, row {row - self._starts[number]} (counted from 0)"

    def stamp(self, row: int) -> str | None:
        status = self._files[int(np.searchsorted(self._starts, row, side="right")) - 1].path.stat()
        return f"{self.where(row)}\0{status.st_size}\0{status.st_mtime_ns}"

    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        chosen = np.asarray(rows, dtype=np.int64)
        for file, start in zip(self._files, self._starts, strict=False):
            inside = chosen[(chosen >= start) & (chosen < start + len(file.labels))] - start
            if len(inside):
                yield from self._read_file(file, inside)

    def _read_file(self, file: _File, chosen: Labels) -> Iterator[bytes | Undecodable]:
        try:
            with pq.ParquetFile(
                file.path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            ) as opened:
                offset = 0
                for number, length in enumerate(file.row_groups):
                    if np.any((chosen >= offset) & (chosen < offset + length)):
                        yield from self._read_group(opened, number, chosen - offset, file.path)
                    offset += length
        except _READ_ERRORS as error:
            raise _damaged(file.path, error) from error

    def _read_group(
        self, opened: pq.ParquetFile, number: int, chosen: Labels, path: Path
    ) -> Iterator[bytes | Undecodable]:
        offset = 0
        for batch in opened.iter_batches(batch_size=64, row_groups=[number], columns=[self._column], use_threads=False):
            column = batch.column(0)
            for row in chosen[(chosen >= offset) & (chosen < offset + len(column))] - offset:
                try:
                    yield _image_bytes(column[int(row)].as_py(), path.parent, self._max_bytes)
                except Undecodable as problem:
                    yield problem
                except UnicodeDecodeError:
                    yield Undecodable("has a path that is not UTF-8")
            offset += len(column)
        if offset != opened.metadata.row_group(number).num_rows:  # pyarrow may end early, without a word
            raise _damaged(path, ValueError(f"row group {number} holds {offset} images instead of those promised"))


def _image_bytes(value: Any, folder: Path, max_bytes: int) -> bytes:
    """The encoded image of one cell; a cell without bytes may name a file next to the Parquet file."""
    if isinstance(value, bytes):
        return value
    if value is None:
        raise Undecodable("is null")
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return bytes(data)
    if not path:
        raise Undecodable("has neither bytes nor a path")
    if "\0" in path or Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path or "://" in path:
        raise Undecodable(f"has no bytes, and its path {path!r} leaves the folder of the Parquet file: that is refused")
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # pathlib before 3.13 reports a loop as RuntimeError
        inside = False
    if not inside:
        raise Undecodable(f"has no bytes, and its path {path!r} is a link that leaves the folder of the Parquet file")
    return read_file(folder / path, max_bytes)


def _damaged(path: Path, error: BaseException) -> DataError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    try:
        with open(path, "rb") as file:
            pointer = file.read(22) == b"version https://git-lfs"[:22]
    except OSError:
        pointer = False
    if pointer:
        return DataError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    return DataError(f"{path} is not a whole Parquet file ({said}): download or write it again")


def expand(patterns: str | list[str], base: Path, setting: str) -> list[Path]:
    """The files that paths and globs below ``base`` stand for, sorted within each glob, each once.

    Raises:
        DataError: nothing matches, or a folder is named.
    """
    files: dict[Path, Path] = {}
    items = [patterns] if isinstance(patterns, str) else patterns
    if not items:
        raise DataError(f"{setting} is an empty list: name at least one file, or null")
    for item in items:
        path = base / Path(item).expanduser()
        if "://" in item:
            raise DataError(f"{setting}: {item} is an address: download the file and name its path")
        if path.is_dir():
            raise DataError(
                f"{setting}: {path} is a folder: name the files in it, e.g. {item.rstrip('/')}/train-*.parquet"
            )
        found = [path] if path.is_file() else _glob(path, setting) if any(c in item for c in "*?[") else []
        if not found:
            near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise DataError(f"{setting}: no file matches {path}{near}")
        for match in found:
            files.setdefault(match.resolve(), match)
    return list(files.values())


def _glob(path: Path, setting: str) -> list[Path]:
    root = Path(path.anchor)
    try:
        return sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_file())
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{setting}: {path} is not a glob ({error})") from error


def list_parquet(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Read schemas and labels of every file; images stay where they are (``bad`` is not used).

    Raises:
        DataError: files that are missing, damaged or the same in two splits; columns that are missing or of the wrong
            type; labels that are null, negative, beyond the class names, or leave a class of the training split empty.
    """
    given = {name: getattr(settings, name) for name in ("train", "validation", "test")}
    paths = {name: expand(value, base, f"dataset.{name}") for name, value in given.items() if value is not None}
    return list_tables(paths, settings)


def list_tables(paths: dict[str, list[Path]], settings: DatasetSettings) -> Source:
    """``list_parquet`` of files that exist: split -> its files."""
    if settings.duplicates != "allow":
        _refuse_shared(paths)
    files = {name: [_inspect(path, settings) for path in listed] for name, listed in paths.items()}
    names = _class_names(files, settings)
    for split in files:
        _check_labels(files[split], split, len(names), settings)
    max_bytes = max_file_bytes(settings.max_pixels)
    listings: dict[str, Listing] = {
        split: _ParquetRows(listed, split, settings.image_column, max_bytes) for split, listed in files.items()
    }
    return Source("parquet", names, listings)


def _refuse_shared(paths: dict[str, list[Path]]) -> None:
    owner: dict[Path, str] = {}
    for split, listed in paths.items():
        for path in listed:
            other = owner.setdefault(path.resolve(), split)
            if other != split:
                raise DataError(
                    f"{path} is listed in both dataset.{other} and dataset.{split}: a file belongs to one split; "
                    f"narrow the globs"
                )


def _inspect(path: Path, settings: DatasetSettings) -> _File:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as opened:
            schema = opened.schema_arrow
            _check_column(path, schema, settings.image_column, "image_column")
            _check_column(path, schema, settings.label_column, "label_column")
            _check_image_type(path, schema.field(settings.image_column))
            label_type = schema.field(settings.label_column).type
            if not pa.types.is_integer(label_type):
                raise DataError(
                    f"{path}: column {settings.label_column!r} holds {label_type}, but labels must be integers from 0 "
                    f"to classes - 1: map them first, and give the names in dataset.class_names"
                )
            column = opened.read(columns=[settings.label_column], use_threads=False).column(0)
            groups_column = None
            if settings.group_column is not None:
                _check_column(path, schema, settings.group_column, "group_column")
                groups_column = opened.read(columns=[settings.group_column], use_threads=False).column(0)
            groups = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    except _READ_ERRORS as error:
        raise _damaged(path, error) from error
    labels = _labels(path, column, settings.label_column)
    if len(labels) != sum(groups):
        raise _damaged(path, ValueError(f"{len(labels)} labels for {sum(groups)} rows"))
    names = _names_in_metadata(path, schema.metadata or {}, settings.label_column)
    return _File(path, groups, labels, names, _groups(path, groups_column, settings.group_column))


def _groups(path: Path, column: pa.ChunkedArray | None, name: str | None) -> list[str] | None:
    if column is None:
        return None
    words = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (words or pa.types.is_integer(column.type)):
        raise DataError(f"{path}: column {name!r} holds {column.type}, but groups must be words or integers")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}, row {row} (counted from 0): column {name!r} is null; every image needs a group")
    return [str(value) for value in column.to_pylist()]


def _check_column(path: Path, schema: pa.Schema, name: str, setting: str) -> None:
    count = schema.names.count(name)
    if count == 0:
        raise DataError(
            f"{path} has no column {name!r} (dataset.{setting}); its columns: {', '.join(schema.names) or 'none'}"
            f"{nearest(name, schema.names)}"
        )
    if count > 1:
        raise DataError(f"{path} has {count} columns named {name!r}: keep one")


def _check_image_type(path: Path, column: pa.Field) -> None:
    kind = column.type
    plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    binary = [pa.types.is_binary(t) or pa.types.is_large_binary(t) for k, t in fields.items() if k == "bytes"]
    text = [pa.types.is_string(t) or pa.types.is_large_string(t) for k, t in fields.items() if k == "path"]
    if not plain and not (fields and (binary or text) and all(binary + text)):
        raise DataError(
            f"{path}: column {column.name!r} holds {kind}, but images must be struct<bytes: binary, path: string> or "
            f"binary, holding encoded image files"
        )


def _labels(path: Path, column: pa.ChunkedArray, name: str) -> Labels:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}, row {row} (counted from 0): column {name!r} is null; every image needs a label")
    try:
        values = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name!r} holds a label beyond 64-bit integers ({error})") from error
    return np.asarray(values, dtype=np.int64)


def _names_in_metadata(path: Path, metadata: dict[bytes, bytes], column: str) -> list[str] | None:
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # written by other software, or not a ClassLabel
    if not isinstance(names, list):
        raise DataError(f"{path}: the class names in the Hugging Face metadata are no list: set dataset.class_names")
    return check_class_names(names, f"{path}, Hugging Face metadata")


def _class_names(files: dict[str, list[_File]], settings: DatasetSettings) -> list[str]:
    if settings.class_names is not None:
        return check_class_names(settings.class_names, "dataset.class_names")
    named = [(file.path, file.class_names) for listed in files.values() for file in listed if file.class_names]
    for path, names in named[1:]:
        if names != named[0][1]:
            raise DataError(
                f"{path} and {named[0][0]} give other class names ({_some(names)} and {_some(named[0][1])}), so that "
                f"their labels mean different things: write both with the same names"
            )
    if named:
        return list(named[0][1])
    present = np.unique(np.concatenate([file.labels for file in files["train"]]))
    present = present[present >= 0]
    if len(present) and len(present) != present[-1] + 1:
        gap = int(np.flatnonzero(present != np.arange(len(present)))[0])
        raise DataError(
            f"{files['train'][0].path.parent}: labels run to {present[-1]}, but only {len(present)} of them occur in "
            f"the training images, and {gap} is the first that does not. Labels must be 0 to classes - 1 without a "
            f"gap: renumber them"
        )
    return [str(label) for label in range(len(present))]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_labels(files: list[_File], split: str, classes: int, settings: DatasetSettings) -> None:
    for file in files:
        wrong = np.flatnonzero((file.labels < 0) | (file.labels >= classes))
        if not len(wrong):
            continue
        label = int(file.labels[wrong[0]])
        hint = "; -1 marks a split published without labels: choose another" if label == -1 else ""
        raise DataError(
            f"{file.path}, row {wrong[0]} (counted from 0): column {settings.label_column!r} is {label}, but 0 to "
            f"{classes - 1} is allowed, as dataset.{split} has {classes} classes{hint}"
        )
