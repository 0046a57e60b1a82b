"""The Parquet index of a split: what it looks like, writing it row group by row group, reading it lazily."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ..errors import ArtifactError, first_line
from ..storage.files import canonical_json, sha256_bytes, sha256_file
from .decode import Box, Least, Undecodable, decode_image, decode_reduced
from .listing import File, max_file_bytes, read_file

__all__ = ["FORMAT", "SCHEMA", "Index", "IndexWriter"]

FORMAT = 2
"""Version of the index: raised when older indexes must be made again."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("bytes", pa.binary()),
        pa.field("path", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("group", pa.string()),
        pa.field("split", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)
"""Columns of an index; width and height as decoded (upright), ``sha256`` of the encoded image.

The image is either in ``bytes``, or the file ``path`` (relative to the folder of the index unless absolute), of which
``offset`` and ``length`` mark the stretch where the file is an archive. ``group`` is null without groups.
"""

_KEY = b"clpdd"
_RELATIVE = "index"  # what paths are relative to
_GROUP_ROWS = 1000
_GROUP_BYTES = 32 << 20
_GROUPS_HELD = 2
_CONTENT = ("bytes", "path", "offset", "length", "sha256")


class IndexWriter:
    """Writes an index in bounded memory; equal rows and metadata give equal bytes. Use as a context manager.

    ``metadata`` must hold ``class_names``, ``dataset``, ``source`` and ``max_pixels``. ``refers`` says that files are
    named instead of held; ``home`` is the folder that the index will lie in.
    """

    def __init__(
        self, path: Path, split: str, metadata: Mapping[str, Any], refers: bool = False, home: Path | None = None
    ) -> None:
        home = path.parent if home is None else home
        self._split = split
        self._roots: dict[str, str] = {}
        self._home = os.path.realpath(home)
        facts = {"relative_to": _RELATIVE} if refers else {}
        record = canonical_json({**metadata, **facts, "format": FORMAT, "split": split}).encode()
        self._schema = SCHEMA.with_metadata({_KEY: record})
        # A Python file, since its errors keep their errno on the way through Arrow.
        self._file = open(path, "xb")  # noqa: SIM115  (closed by __exit__)
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="none",
            use_dictionary=False,
            write_statistics=["label"],
            write_page_checksum=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._held = 0

    def add(
        self,
        name: str,
        image: bytes | File,
        label: int,
        width: int,
        height: int,
        sha256: str,
        group: str | None = None,
    ) -> None:
        """Append one image: its bytes, or where they are."""
        row = {"id": name, "label": label, "group": group, "split": self._split}
        row |= {"width": width, "height": height, "sha256": sha256}
        if isinstance(image, bytes):
            row["bytes"] = image
            self._held += len(image)
        else:
            row["path"] = self._placed(image)
            if image.offset >= 0:
                row |= {"offset": image.offset, "length": image.length}
        self._rows.append(row)
        if len(self._rows) >= _GROUP_ROWS or self._held >= _GROUP_BYTES:
            self._flush()

    def _placed(self, image: File) -> str:
        """The file relative to the folder of the index, so that both can be moved together; absolute ones stay so."""
        if image.root not in self._roots:
            self._roots[image.root] = image.root if os.path.isabs(image.root) else _relative(image.root, self._home)
        return replace(image, root=self._roots[image.root]).path

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._held = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


class Index:
    """A split's images and labels. Open with ``Index.open``.

    Labels, ids and groups are in memory; encoded images are read by row group when asked for, and the last two row
    groups are held, so that reading in order is cheap. Several threads may read at once. Instances travel to other
    processes as their path alone.

    Attributes:
        path: the file.
        class_names: names of the ``C`` classes.
        ids: ``N`` unique names of images.
        labels: ``(N,)`` int64 in ``[0, C)``.
        groups: the group of every image, or ``None`` where the dataset has none.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        dataset: name of the source.
        max_pixels: limit that images are decoded with.
    """

    def __init__(
        self,
        path: Path,
        metadata: Mapping[str, Any],
        ids: list[str],
        labels: NDArray[np.int64],
        groups: list[str] | None = None,
    ) -> None:
        self.path = path
        self.metadata = dict(metadata)
        self.class_names: list[str] = metadata["class_names"]
        self.split: str = metadata["split"]
        self.dataset: str = metadata["dataset"]
        self.max_pixels: int = metadata["max_pixels"]
        self.ids, self.labels, self.groups = ids, labels, groups
        self._file: pq.ParquetFile | None = None
        self._starts = np.zeros(1, np.int64)
        self._owner = 0
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._locks: dict[int, threading.Lock] = {}  # of each process: one that was held at a fork stays held in it

    @classmethod
    def open(cls, path: Path | str) -> Index:
        """Open an index.

        Raises:
            ArtifactError: missing, damaged, or a Parquet file that is no index.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist: run the stage index")
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                metadata = _metadata(path, file.schema_arrow)
                table = file.read(columns=["id", "label", "group", "split"], use_threads=False)
            table.validate(full=True)
            ids, labels = table.column("id").to_pylist(), table.column("label").to_numpy()
            splits = set(table.column("split").unique().to_pylist())
            grouped = table.column("group")
            groups = grouped.to_pylist() if grouped.null_count < len(grouped) else None
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            raise _damaged(path, first_line(error)) from error
        if len(labels) and (labels.min() < 0 or labels.max() >= len(metadata["class_names"])):
            raise _damaged(path, f"labels run from {labels.min()} to {labels.max()}")
        if len(set(ids)) != len(ids) or splits - {metadata["split"]}:
            raise _damaged(path, "its ids are not unique or its rows belong to several splits")
        if groups is not None and None in groups:
            raise _damaged(path, "some of its rows have a group and others none")
        return cls(path, metadata, ids, labels, groups)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Index.open, (str(self.path),)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the file, computed when first asked for."""
        return sha256_file(self.path)

    def encoded(self, row: int) -> bytes:
        """The encoded image file of a row in ``[0, N)``.

        Raises:
            IndexError: no such row.
            ArtifactError: the index, or the file it refers to, was altered or damaged since it was made.
        """
        row = int(row)
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {row}")
        try:
            with self._locks.setdefault(os.getpid(), threading.Lock()):
                self._reopen()
                number = int(np.searchsorted(self._starts, row, side="right")) - 1
                group = self._group(number)
            inside = row - int(self._starts[number])
            data, path, offset, length, digest = (group.column(name)[inside].as_py() for name in _CONTENT)
        except (pa.ArrowException, OSError, ValueError, IndexError, KeyError) as error:
            raise _damaged(self.path, first_line(error)) from error
        if data is None and path is not None:
            return self._referred(row, File("", path) if offset is None else File(path, "", "", offset, length), digest)
        if data is None or sha256_bytes(data) != digest:
            raise _damaged(self.path, f"the bytes of row {row} ({self.ids[row]}) are not those it was made with")
        return bytes(data)

    def _referred(self, row: int, file: File, digest: str) -> bytes:
        path = file.root or file.name
        if self.metadata.get("relative_to") == _RELATIVE:  # older ones: relative to the working folder
            path = os.path.join(self.path.parent, path)
        shown = os.path.normpath(path)
        try:
            data = read_file(Path(path), max_file_bytes(self.max_pixels), file.offset, file.length)
        except Undecodable as problem:
            raise ArtifactError(
                f"{shown}, named by row {row} of {self.path}, {problem}: put it back, or run the stage index again"
            ) from problem
        if sha256_bytes(data) != digest:
            raise ArtifactError(
                f"{shown} was altered since {self.path} was made (row {row}, {self.ids[row]}): run the stage index "
                f"again"
            )
        return data

    def image(self, row: int) -> Image.Image:
        """The decoded image of a row, mode RGB, by ``decode_image``."""
        return decode_image(self.encoded(row), self.max_pixels, self._named(row))

    def reduced_image(self, row: int, least: Least) -> tuple[Image.Image, Box]:
        """The image of a row, perhaps at reduced scale, and the part of it that shows the whole: ``decode_reduced``."""
        return decode_reduced(self.encoded(row), self.max_pixels, self._named(row), least)

    def _named(self, row: int) -> str:
        return f"{self.path}, row {row} ({self.ids[row]})"

    def _reopen(self) -> None:
        """Open the file, again in a forked process: a shared file position would mix up its readers."""
        if self._file is not None and self._owner == os.getpid():
            return
        self._file = pq.ParquetFile(self.path, pre_buffer=False, page_checksum_verification=True)
        self._owner = os.getpid()
        self._groups.clear()
        meta = self._file.metadata
        self._starts = np.cumsum([0] + [meta.row_group(number).num_rows for number in range(meta.num_row_groups)])

    def _group(self, number: int) -> pa.Table:
        held = self._groups.get(number)
        if held is None:
            assert self._file is not None
            held = self._file.read_row_group(number, columns=list(_CONTENT), use_threads=False)
            self._groups[number] = held
            if len(self._groups) > _GROUPS_HELD:
                self._groups.popitem(last=False)
        self._groups.move_to_end(number)
        return held


def _relative(root: str, home: str) -> str:
    """``root``, which is relative to the working folder, as seen from ``home``."""
    # ".." behind a link leads elsewhere than its letters say
    whole = os.path.realpath(root) if ".." in Path(root).parts else os.path.join(os.path.realpath(os.curdir), root)
    return Path(os.path.relpath(whole, home)).as_posix()


def _metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    raw = (schema.metadata or {}).get(_KEY)
    if raw is None or not schema.equals(SCHEMA, check_metadata=False):
        raise ArtifactError(f"{path} is a Parquet file, but no index of this program: run the stage index to make one")
    try:
        metadata: dict[str, Any] = json.loads(raw)
        if metadata["format"] != FORMAT:
            raise ArtifactError(
                f"{path} has format {metadata['format']}, but {FORMAT} is read: run the stage index again"
            )
        names, split = metadata["class_names"], metadata["split"]
        whole = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
        if not whole or not isinstance(split, str) or not isinstance(metadata["max_pixels"], int):
            raise ValueError("its metadata is incomplete")
        metadata["dataset"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, first_line(error)) from error
    return metadata


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged ({why}): delete it and run the stage index again")
