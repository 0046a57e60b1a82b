"""What one Parquet file holds: its columns, labels, groups and class names, checked before any image is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import Labels, check_class_names, nearest

__all__ = ["READ_ERRORS", "File", "damaged", "inspect"]

READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: column names of a damaged footer


@dataclass(frozen=True)
class File:
    """A file whose columns have been checked: everything but its images.

    Attributes:
        row_groups: rows of each row group.
        labels: ``(n,)`` int64.
        class_names: those in the file's metadata, where it has some.
        groups: ``n`` names, where a column of groups was asked for.
    """

    path: Path
    row_groups: list[int]
    labels: Labels
    class_names: list[str] | None
    groups: list[str] | None = None


def inspect(path: Path, settings: DatasetSettings) -> File:
    """Read the schema and the columns of labels and groups.

    Raises:
        DataError: the file is missing or damaged; a column is missing, of the wrong type, or has a null.
    """
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
    except READ_ERRORS as error:
        raise damaged(path, error) from error
    labels = _labels(path, column, settings.label_column)
    if len(labels) != sum(groups):
        raise damaged(path, ValueError(f"{len(labels)} labels for {sum(groups)} rows"))
    names = _names_in_metadata(path, schema.metadata or {}, settings.label_column)
    return File(path, groups, labels, names, _groups(path, groups_column, settings.group_column))


def _groups(path: Path, column: pa.ChunkedArray | None, name: str | None) -> list[str] | None:
    if column is None:
        return None
    words = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (words or pa.types.is_integer(column.type)):
        raise DataError(f"{path}: column {name!r} holds {column.type}, but groups must be words or integers")
    _refuse_nulls(path, column, name, "group")
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
    _refuse_nulls(path, column, name, "label")
    try:
        values = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {name!r} holds a label beyond 64-bit integers ({error})") from error
    return np.asarray(values, dtype=np.int64)


def _refuse_nulls(path: Path, column: pa.ChunkedArray, name: str | None, what: str) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"{path}, row {row} (counted from 0): column {name!r} is null; every image needs a {what}")


def _names_in_metadata(path: Path, metadata: dict[bytes, bytes], column: str) -> list[str] | None:
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        names = feature["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None  # written by other software, or not a ClassLabel
    if not isinstance(names, list):
        raise DataError(f"{path}: the class names in the Hugging Face metadata are no list: set dataset.class_names")
    return check_class_names(names, f"{path}, Hugging Face metadata")


def damaged(path: Path, error: BaseException) -> DataError:
    """What to raise where reading ended in ``error``."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    try:
        with open(path, "rb") as file:
            pointer = file.read(22) == b"version https://git-lfs"[:22]
    except OSError:
        pointer = False
    if pointer:
        return DataError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    return DataError(f"{path} is not a whole Parquet file ({said}): download or write it again")
