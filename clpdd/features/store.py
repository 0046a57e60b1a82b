"""Reading side of the feature store, and the format both sides share.

A store is a Zarr v3 group: ``features (N, d)`` float16 or float32 in shards, ``labels (N,)`` int64, ``ids (N,)``
strings and, where the dataset has groups, ``groups (N,)`` strings, each chunk followed by its CRC-32C. The group's
attribute ``clpdd`` records where the features come from, the versions of the libraries that made them, and the size and
SHA-256 of every file, and is sealed by a digest of its own.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import zarr
import zarr.errors
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArtifactError
from ..storage.files import read_json, seal, sha256_file
from ..storage.work import versions
from .shards import ShardReader

__all__ = ["FORMAT", "GROUP", "FeatureStore", "content_digest", "deciding_versions"]

FORMAT = 1
GROUP = "zarr.json"
_REMEDY = "delete it and run the cache stage again"
_KEYS = ("class_names", "content", "dim", "dtype", "encoder", "files", "index", "rows", "split")


_DECIDING = ("pillow", "timm", "torch")


def deciding_versions() -> dict[str, str]:
    """Versions of what turns a picture into features, without what names a build (``+cpu``)."""
    return {name: version.partition("+")[0] for name, version in versions().items() if name in _DECIDING}


class FeatureStore:
    """Features of one split by one encoder, in the order of the index.

    Attributes:
        path: the Zarr group.
        encoder: ``Encoder.describe()`` of the encoder that made the features.
        dim: features per image ``d``.
        class_names: names of the ``C`` classes.
        split: which split.
        digest: SHA-256 over the stored features and labels.
        index: SHA-256 of the index file they were made from.
        dtype: ``"float16"`` or ``"float32"``, as stored.
        versions: of the libraries that made the features; empty where the store is older than this record.
        precision: the encoder's, ``"float32"`` or ``"bfloat16"``; ``None`` likewise.
        jpeg: how JPEG images were decoded, ``"exact"`` or ``"reduced"``; older stores know the first alone.
        labels: ``(N,)`` int64 in [0, C).
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.encoder: dict[str, Any] = record["encoder"]
        self.dim: int = record["dim"]
        self.class_names: list[str] = record["class_names"]
        self.split: str = record["split"]
        self.digest: str = record["content"]
        self.index: str = record["index"]
        self.dtype: str = record["dtype"]
        self.versions: dict[str, str] = record.get("versions", {})
        self.precision: str | None = record.get("precision")
        self.jpeg: Literal["exact", "reduced"] = record.get("jpeg", "exact")
        self._rows: int = record["rows"]
        self._grouped = f"groups/{GROUP}" in record["files"]
        features = self._array("features", (self._rows, self.dim), self.dtype)
        heights = features.chunks[0], (features.shards or features.chunks)[0]
        self._shards = ShardReader(path / "features", self.dim, self.dtype, *heights)
        labels = self._array("labels", (self._rows,), "int64")
        with _explained(path):
            self.labels: Tensor = torch.from_numpy(np.array(labels[:]))

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a store for reading.

        Names, sizes and metadata of all files are checked now, the features themselves when they are read.

        Raises:
            ArtifactError: the store is missing, incomplete, damaged, of another format, or not ours.
        """
        path = Path(path)
        record = _read_record(path)
        for name, expected in record["files"].items():
            file = path / name
            if not file.is_file():
                raise ArtifactError(f"feature store {path} is incomplete, {name} is missing: {_REMEDY}")
            if file.stat().st_size != expected["bytes"]:
                raise ArtifactError(
                    f"feature store {path} is truncated or altered, {name} holds {file.stat().st_size} bytes "
                    f"instead of {expected['bytes']}: {_REMEDY}"
                )
            if name.endswith(GROUP) and sha256_file(file) != expected["sha256"]:
                raise ArtifactError(f"feature store {path} is damaged, {name} was altered: {_REMEDY}")
        return cls(path, record)

    def __len__(self) -> int:
        return self._rows

    @cached_property
    def ids(self) -> list[str]:
        """The sample id of every row."""
        return self._strings("ids")

    @cached_property
    def groups(self) -> list[str] | None:
        """The group of every row, for judging alone; ``None`` where the dataset has no groups."""
        return self._strings("groups") if self._grouped else None

    def _strings(self, name: str) -> list[str]:
        array = self._array(name, (self._rows,), None)
        with _explained(self.path):
            return [str(one) for one in np.asarray(array[:]).tolist()]

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk: reading one of them reads them all."""
        return self._shards.chunk_rows

    def features(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All features ``(N, d)``. Raises ``ArtifactError`` when a checksum does not fit."""
        everything = torch.empty(self._rows, self.dim, dtype=dtype)
        if dtype == getattr(torch, self.dtype):
            with _explained(self.path):
                self._shards.read(0, everything.numpy())
            return everything
        step = self.chunk_rows * 16
        for start, (features, _) in zip(range(0, self._rows, step), self.scan(step, dtype), strict=True):
            everything[start : start + step] = features
        return everything

    def blocks(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of features ``(b, d)`` float32 and labels ``(b,)`` int64, ``b <= rows``, in the order of the rows.

        Raises ``ArtifactError`` when a checksum does not fit.
        """
        for features, labels in self.scan(rows):
            yield features.clone(), labels

    def scan(self, rows: int, dtype: torch.dtype = torch.float32) -> Generator[tuple[Tensor, Tensor], None, None]:
        """``blocks`` in ``dtype``, each read while the one before it is used, in two buffers that are used in turn.

        What is yielded holds until the next pair is asked for. Memory is bounded by ``rows``, and no page of it is
        touched for the first time but once, which is most of what reading costs.
        """
        rows = min(rows, self._rows)
        raw = np.empty((rows, self.dim), self._shards.dtype)
        buffers = [torch.empty(rows, self.dim, dtype=dtype) for _ in range(2)]

        def load(start: int) -> Tensor:
            count = min(rows, self._rows - start)
            with _explained(self.path):
                self._shards.read(start, raw[:count])
            return buffers[start // rows % 2][:count].copy_(torch.from_numpy(raw[:count]))

        with ThreadPoolExecutor(1, thread_name_prefix="features") as reader:
            coming = reader.submit(load, 0)
            for start in range(0, self._rows, rows):
                features = coming.result()
                if start + rows < self._rows:
                    coming = reader.submit(load, start + rows)
                yield features, self.labels[start : start + rows]

    def stored(self, start: int, stop: int) -> NDArray[Any]:
        """Features of rows ``[start, stop)`` in the stored dtype."""
        found = np.empty((max(0, min(stop, self._rows) - start), self.dim), self._shards.dtype)
        with _explained(self.path):
            self._shards.read(start, found)
        return found

    def _array(self, name: str, shape: tuple[int, ...], dtype: str | None) -> zarr.Array[Any]:
        with _explained(self.path):
            array = zarr.open_array(str(self.path / name), mode="r", zarr_format=3)
        if array.shape != shape or (dtype is not None and array.dtype != np.dtype(dtype)):
            raise ArtifactError(
                f"feature store {self.path} is damaged, {name} is {array.dtype} {array.shape} instead of "
                f"{dtype or 'string'} {shape}: {_REMEDY}"
            )
        return array


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Whatever Zarr says of unusable files, as an ``ArtifactError`` naming the store."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, OSError, zarr.errors.BaseZarrError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise ArtifactError(f"feature store {path} is damaged ({said}): {_REMEDY}") from error


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ArtifactError(f"feature store {path} does not exist: run the cache stage for this encoder and split")
    if not (path / GROUP).is_file():
        kind = "of Zarr version 2, not 3" if (path / ".zgroup").exists() else "no finished feature store"
        raise ArtifactError(f"{path} is {kind}: {_REMEDY}")
    metadata = read_json(path / GROUP)
    attributes = metadata.get("attributes", {}) if isinstance(metadata, dict) else {}
    record = attributes.get("clpdd") if isinstance(attributes, dict) else None
    if not isinstance(record, dict) or metadata.get("node_type") != "group" or metadata.get("zarr_format") != 3:
        raise ArtifactError(f"{path} is Zarr, but not a feature store of clpdd: give another path, or {_REMEDY}")
    if record.get("format") != FORMAT:
        raise ArtifactError(
            f"feature store {path} has format {record.get('format')!r}, this version reads {FORMAT}: {_REMEDY}"
        )
    if record.get("seal") != seal(record) or any(key not in record for key in _KEYS):
        raise ArtifactError(f"feature store {path} is damaged, the attributes in {GROUP} were altered: {_REMEDY}")
    return record


def content_digest(features: Iterator[NDArray[Any]], labels: NDArray[np.int64], dim: int, dtype: str) -> str:
    """SHA-256 over dtype, ``d``, the features row by row and the labels, all little-endian: free of chunking."""
    digest = hashlib.sha256(f"{dtype} {dim}\n".encode())
    for block in features:
        digest.update(np.ascontiguousarray(block, dtype=np.dtype(dtype).newbyteorder("<")).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()
