"""The images of Parquet files, read where they lie, row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..decode import Undecodable
from ..listing import Labels, Listing, read_file
from .parquet_columns import READ_ERRORS, File, damaged

__all__ = ["ParquetRows", "names_files"]


class ParquetRows(Listing):
    """The rows of all files of a split, in the order of the files."""

    def __init__(self, files: list[File], split: str, column: str, max_bytes: int) -> None:
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

    def digest(self) -> str | None:
        if any(names_files(file.path, self._column) for file in self._files):
            return None
        marks = hashlib.sha256(self.labels.tobytes())
        for file in self._files:
            status = file.path.stat()
            marks.update(f"{file.path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return marks.hexdigest()

    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        chosen = np.asarray(rows, dtype=np.int64)
        for file, start in zip(self._files, self._starts, strict=False):
            inside = chosen[(chosen >= start) & (chosen < start + len(file.labels))] - start
            if len(inside):
                yield from self._read_file(file, inside)

    def _read_file(self, file: File, chosen: Labels) -> Iterator[bytes | Undecodable]:
        try:
            with pq.ParquetFile(
                file.path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
            ) as opened:
                offset = 0
                for number, length in enumerate(file.row_groups):
                    if np.any((chosen >= offset) & (chosen < offset + length)):
                        yield from self._read_group(opened, number, chosen - offset, file.path)
                    offset += length
        except READ_ERRORS as error:
            raise damaged(file.path, error) from error

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
            raise damaged(path, ValueError(f"row group {number} holds {offset} images instead of those promised"))


def names_files(path: Path, column: str) -> bool:
    """Whether cells may name files beside the Parquet file: bytes are null or missing, or its statistics do not say."""
    try:
        with pq.ParquetFile(path) as opened:
            metadata = opened.metadata
            columns = [metadata.schema.column(k).path for k in range(metadata.num_columns)]
            places = [k for k, name in enumerate(columns) if name == f"{column}.bytes"]
            if not places and f"{column}.path" in columns:
                return True
            for place in places:
                for group in range(metadata.num_row_groups):
                    statistics = metadata.row_group(group).column(place).statistics
                    if statistics is None or not statistics.has_null_count or statistics.null_count:
                        return True
    except READ_ERRORS as error:
        raise damaged(path, error) from error
    return False


def _image_bytes(value: Any, folder: Path, max_bytes: int) -> bytes:
    """The encoded image of one cell; a cell without bytes may name a file next to the Parquet file."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, list):
        return _joined(value)
    if value is None:
        raise Undecodable("is null")
    data, path = value.get("bytes"), value.get("path")
    if data is not None:
        return _joined(data) if isinstance(data, list) else bytes(data)
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


def _joined(numbers: list[int | None]) -> bytes:
    """A list of numbers, each a byte."""
    if None in numbers:
        raise Undecodable("holds a null among its bytes")
    return bytes(number for number in numbers if number is not None)
