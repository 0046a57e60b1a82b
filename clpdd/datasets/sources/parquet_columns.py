"""What one Parquet file holds: its columns, labels, groups and class names, checked before any image is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...config.dataset import DatasetSettings
from ...errors import DataError, first_line
from ..listing import Labels, check_class_names, nearest

__all__ = ["READ_ERRORS", "File", "damaged", "inspect"]

READ_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)  # the last: column names of a damaged footer


@dataclass(frozen=True)
class File:
    """A file whose columns have been checked: everything but its images.

    Attributes:
        row_groups: rows of each row group.
        labels: ``(n,)`` int64; zeros where the labels are words that have no numbers yet.
        words: the ``n`` labels, where they are words.
        class_names: those in the file's metadata, where it has some.
        groups: ``n`` names, where a column of groups was asked for.
    """

    path: Path
    row_groups: list[int]
    labels: Labels
    class_names: list[str] | None
    groups: list[str] | None = None
    words: list[str] | None = None


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
            column = opened.read(columns=[settings.label_column], use_threads=False).column(0)
            groups_column = None
            if settings.group_column is not None:
                _check_column(path, schema, settings.group_column, "group_column")
                groups_column = opened.read(columns=[settings.group_column], use_threads=False).column(0)
            groups = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
    except READ_ERRORS as error:
        raise damaged(path, error) from error
    labels, words = _labels(path, column, settings.label_column)
    if len(labels) != sum(groups):
        raise damaged(path, ValueError(f"{len(labels)} labels for {sum(groups)} rows"))
    names = _names_in_metadata(path, schema.metadata or {}, settings.label_column)
    return File(path, groups, labels, names, _groups(path, groups_column, settings.group_column), words)


def _groups(path: Path, column: pa.ChunkedArray | None, name: str | None) -> list[str] | None:
    if column is None:
        return None
    column = _decoded(column)
    if not (_is_text(column.type) or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
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
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    held = [_is_bytes(t) or pa.types.is_null(t) for k, t in fields.items() if k == "bytes"]
    held += [_is_text(t) or pa.types.is_null(t) for k, t in fields.items() if k == "path"]
    empty = all(pa.types.is_null(fields[k]) for k in ("bytes", "path") if k in fields)
    if not _is_bytes(kind) and not (held and all(held) and not empty):
        raise DataError(
            f"{path}: column {column.name!r} holds {kind}, but images must be struct<bytes: binary, path: string> or "
            f"binary, holding encoded image files"
        )


def _is_bytes(kind: pa.DataType) -> bool:
    """Whether the type holds bytes, however they are laid out."""
    if pa.types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return bool(pa.types.is_uint8(kind.value_type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary's column as that of its values."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _labels(path: Path, column: pa.ChunkedArray, name: str) -> tuple[Labels, list[str] | None]:
    """Labels as integers, and as words where they are words or truth values."""
    _refuse_nulls(path, column, name, "label")
    column = _decoded(column)
    kind = column.type
    if _is_text(kind) or pa.types.is_boolean(kind):
        words = [str(value).lower() if isinstance(value, bool) else value for value in column.to_pylist()]
        return np.zeros(len(words), np.int64), words
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(
            f"{path}: column {name!r} holds {kind}, but labels must be integers or words, one of them an image"
        )
    _refuse_nulls(path, column, name, "label")  # a dictionary may hold null as a value
    try:
        values = column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        what = "a label beyond 64-bit integers" if pa.types.is_integer(kind) else "labels that are no whole numbers"
        raise DataError(f"{path}: column {name!r} holds {what} ({error})") from error
    return np.asarray(values, dtype=np.int64), None


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
    said = first_line(error)
    try:
        with open(path, "rb") as file:
            pointer = file.read(22) == b"version https://git-lfs"[:22]
    except OSError:
        pointer = False
    if pointer:
        return DataError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    return DataError(f"{path} is not a whole Parquet file ({said}): download or write it again")
