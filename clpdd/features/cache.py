"""Writing side of the feature store: encode a split, shard by shard, resumable.

Three things run side by side: worker processes decode, this thread encodes, a background thread writes finished
shards. Batches are cut afresh at the start of every shard, so that a shard's bytes are the same whether it is encoded
in one run with the others or alone in a resumed one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.codecs import Crc32cCodec

from ..datasets import Index
from ..decoding import Batch, Preprocess, decode_batches
from ..encoders import Encoder, encode
from ..errors import ArtifactError, DataError, NumericalError
from ..files import (
    explain_memory_errors,
    explain_os_errors,
    read_json,
    remove,
    sha256_file,
    sync_folder,
    write_json,
)
from ..provenance import code_digest
from ..work import WorkFolder, fingerprint
from .store import FORMAT, GROUP, FeatureStore, content_digest, seal

if TYPE_CHECKING:
    from ..config import CacheSettings

__all__ = ["cache_features"]

log = logging.getLogger(__name__)

_STORE = "features.zarr"
_PROVEN = "shards.json"


def cache_features(
    index_path: Path | str,
    encoder: Encoder,
    settings: CacheSettings,
    target: Path | str,
    work_root: Path | str,
    *,
    wait: float = 0.0,
    progress: bool = True,
    measured: Callable[[int, float], None] | None = None,
) -> FeatureStore:
    """Encode every image of an index into a feature store, or go on with what a killed run has left.

    With ``settings.workers`` above 0 a script must call this below ``if __name__ == "__main__":``, because worker
    processes are spawned.

    Args:
        index_path: Parquet index of one split.
        encoder: the frozen encoder, on the device to encode on.
        settings: dtype, batch size, workers, chunk and shard size.
        target: where to put the Zarr group; replaced when whole.
        work_root: root of the work folders, on the file system of ``target`` if possible (hard links).
        wait: seconds to wait for another run that does the same.
        progress: show a progress bar where there is a terminal.
        measured: called with (images encoded in this run, seconds that took); not called when nothing was encoded.

    Returns:
        The store at ``target``. Its bytes do not depend on ``workers`` or on interruptions.

    Raises:
        DataError: the index holds no images, or an image cannot be decoded.
        NumericalError: a feature is NaN, infinite, or beyond the range of float16; the sample is named.
        ArtifactError, ResourceError, BusyError: see their descriptions.
    """
    index_path, target = Path(index_path), Path(target)
    index = Index.open(index_path)
    if len(index) == 0:
        raise DataError(f"the index {index_path} holds no images: check the dataset's settings and build it again")
    parts = fingerprint(
        settings=settings.model_dump(mode="json", exclude={"workers"}),
        index=index.digest,
        encoder=encoder.describe(),
        device=encoder.mean.device.type,
        code=code_digest("clpdd.features"),
    )
    with WorkFolder(work_root, "cache", f"{encoder.name}/{index.split}", parts, wait) as work:
        job = _Job(index_path, index, encoder, settings, work.out / _STORE, work.path / _PROVEN, progress, measured)
        work.produce(job.run, {_STORE: target}, discard=(_PROVEN,))
    return FeatureStore.open(target)


class _Proven:
    """Files known to be whole: name in the store -> SHA-256, recorded after the file is safe on disk."""

    def __init__(self, store: Path, record: Path) -> None:
        self.store, self.record = store, record
        self.hashes: dict[str, str] = {}

    def add(self, name: str) -> None:
        file = self.store / name
        _sync(file)
        self.hashes[name] = sha256_file(file)
        write_json(self.record, self.hashes)

    def recall(self) -> None:
        """Keep the files that are what an earlier run recorded; remove every other file of the store."""
        recorded: dict[str, str] = {}
        if self.record.exists():
            try:
                recorded = dict(read_json(self.record))
            except (ArtifactError, TypeError, ValueError) as error:
                log.warning("the list of finished shards is damaged (%s): everything is encoded again", error)
        self.hashes = {
            name: digest
            for name, digest in recorded.items()
            if (self.store / name).is_file() and sha256_file(self.store / name) == digest
        }
        altered = sorted(recorded.keys() - self.hashes.keys())
        if altered:
            log.warning(
                "%d finished files in %s are missing or were altered and are made again: %s",
                len(altered),
                self.store,
                ", ".join(altered[:3]) + (", ..." if len(altered) > 3 else ""),
            )
        # Zarr leaves its own temporary files behind when it is killed; they must not be published.
        for file in self.store.rglob("*"):
            if file.is_file() and file.relative_to(self.store).as_posix() not in self.hashes:
                file.unlink()


class _Job:
    """One run of encoding one split into ``store``."""

    def __init__(
        self,
        index_path: Path,
        index: Index,
        encoder: Encoder,
        settings: CacheSettings,
        store: Path,
        record: Path,
        progress: bool,
        measured: Callable[[int, float], None] | None,
    ) -> None:
        self.index_path, self.index, self.encoder, self.settings = index_path, index, encoder, settings
        self.store, self.progress, self.measured = store, progress, measured
        self.proven = _Proven(store, record)
        self.dtype = np.dtype(settings.dtype)

    def run(self) -> None:
        with explain_os_errors("write features to", self.store):
            self.proven.recall()
            array = self._features_array()
            names = [f"features/{array.metadata.encode_chunk_key((k, 0))}" for k in range(self._shards)]
            todo = [k for k, name in enumerate(names) if name not in self.proven.hashes]
            if len(todo) < len(names):
                log.info("%d of %d shards are finished already: going on", len(names) - len(todo), len(names))
            if todo:
                self._encode(array, names, todo)
            self._complete(names)

    def _features_array(self) -> zarr.Array[Any]:
        """The sharded array: the one of an earlier run when its metadata is whole, else a new one."""
        name = f"features/{GROUP}"
        if name in self.proven.hashes:
            return zarr.open_array(str(self.store / "features"), mode="r+", zarr_format=3)
        remove(self.store)
        self.proven.hashes = {}
        # Unwritten chunks (those beyond the last row) read as NaN, which no feature is.
        width = self.encoder.dim
        array = zarr.create_array(
            str(self.store / "features"),
            shape=(len(self.index), width),
            dtype=self.dtype,
            chunks=(self.settings.chunk_rows, width),
            shards=(self.settings.shard_rows, width),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value=float("nan"),
            zarr_format=3,
        )
        self.proven.add(name)
        return array

    @property
    def _shards(self) -> int:
        return -(-len(self.index) // self.settings.shard_rows)

    def _rows(self, shard: int) -> Batch:
        start = shard * self.settings.shard_rows
        return start, min(start + self.settings.shard_rows, len(self.index))

    def _batches(self, shard: int) -> list[Batch]:
        start, stop = self._rows(shard)
        step = self.settings.batch_size
        return [(first, min(first + step, stop)) for first in range(start, stop, step)]

    def _encode(self, array: zarr.Array[Any], names: list[str], todo: list[int]) -> None:
        encoder, total = self.encoder, len(self.index)
        preprocess = Preprocess(encoder.resized, encoder.size, encoder.interpolation, encoder.squash)
        batches = [batch for shard in todo for batch in self._batches(shard)]
        count = sum(stop - start for start, stop in batches)
        began = time.monotonic()
        with (
            decode_batches(self.index_path, preprocess, batches, self.settings.workers) as decoded,
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            tqdm(
                total=total,
                initial=total - count,
                unit="image",
                desc=f"{encoder.name} {self.index.split}",
                disable=None if self.progress else True,
            ) as bar,
        ):
            writing: Future[None] | None = None
            for shard in todo:
                start, stop = self._rows(shard)
                rows = np.empty((stop - start, encoder.dim), self.dtype)
                for first, last in self._batches(shard):
                    rows[first - start : last - start] = self._features(next(decoded), first)
                    bar.update(last - first)
                # One shard in memory is written while the next is filled.
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, array, names[shard], start, rows)
            if writing is not None:
                writing.result()
        if self.measured is not None:
            self.measured(count, time.monotonic() - began)

    def _features(self, pixels: NDArray[np.uint8], first: int) -> NDArray[Any]:
        lower = f"lower cache.batch_size (now {self.settings.batch_size}); finished shards are kept"
        with torch.inference_mode(), explain_memory_errors(lower):
            wide = encode(self.encoder, torch.from_numpy(pixels), batch=len(pixels)).cpu().numpy()
        with np.errstate(over="ignore"):
            features = wide.astype(self.dtype)
        unusable = ~np.isfinite(features).all(axis=1)
        if unusable.any():
            at = int(unusable.argmax())
            name = self.index.ids[first + at]
            if np.isfinite(wide[at]).all():
                raise NumericalError(
                    f"image {name!r} of the {self.index.split} split has a feature of {np.abs(wide[at]).max():.4g}, "
                    f"beyond the range of float16 (65504): set cache.dtype: float32"
                )
            raise NumericalError(
                f"encoder {self.encoder.name!r} gives NaN or infinite features for image {name!r} of the "
                f"{self.index.split} split: check its weights, or whether that image is sound (cache.dtype: float32 "
                f"does not help here)"
            )
        return features

    def _write(self, array: zarr.Array[Any], name: str, start: int, rows: NDArray[Any]) -> None:
        with explain_os_errors("write", self.store / name):
            array[start : start + len(rows)] = rows
            self.proven.add(name)

    def _complete(self, shards: list[str]) -> None:
        """Labels, ids, groups and the Zarr group's metadata, which is written last and makes the folder a store."""
        columns = ("labels", "ids") if self.index.groups is None else ("labels", "ids", "groups")
        for name in ("labels", "ids", "groups"):
            remove(self.store / name)
        labels = np.asarray(self.index.labels, dtype=np.int64)
        _write_column(self.store / "labels", labels, "int64", -1)
        _write_column(self.store / "ids", np.array(self.index.ids, dtype=object), "string", "")
        if self.index.groups is not None:
            _write_column(self.store / "groups", np.array(self.index.groups, dtype=object), "string", "")
        names = [f"{column}/{file}" for column in columns for file in (GROUP, "c/0")]
        for name in names:
            _sync(self.store / name)
        hashes = self.proven.hashes | {name: sha256_file(self.store / name) for name in names}
        features = zarr.open_array(str(self.store / "features"), mode="r", zarr_format=3)
        step = self.settings.shard_rows
        blocks = (np.asarray(features[start : start + step]) for start in range(0, len(self.index), step))
        record: dict[str, Any] = {
            "format": FORMAT,
            "encoder": self.encoder.describe(),
            "index": self.index.digest,
            "class_names": list(self.index.class_names),
            "split": self.index.split,
            "rows": len(self.index),
            "dim": self.encoder.dim,
            "dtype": self.settings.dtype,
            "content": content_digest(blocks, labels, self.encoder.dim, self.settings.dtype),
            "files": {
                name: {"bytes": (self.store / name).stat().st_size, "sha256": digest}
                for name, digest in sorted(hashes.items())
            },
        }
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"clpdd": {**record, "seal": seal(record)}}}
        write_json(self.store / GROUP, group)


def _write_column(path: Path, values: NDArray[Any], dtype: str, fill: int | str) -> None:
    array = zarr.create_array(
        str(path),
        shape=values.shape,
        dtype=dtype,
        chunks=values.shape,
        compressors=[Crc32cCodec()],
        filters=None if dtype == "int64" else "auto",
        fill_value=fill,
        zarr_format=3,
    )
    array[:] = values


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(file.parent)
