"""Writing side of the feature store: encode a split, shard by shard, resumable.

Three things run side by side: worker processes decode, this thread encodes, a background thread writes finished
shards. Batches are cut afresh at the start of every shard, so that a shard's bytes are the same whether it is encoded
in one run with the others, alone in a resumed one, or by another rank.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from ..datasets.index import Index
from ..distributed.work import produce, shared
from ..encoders.calling import resolve_precision
from ..encoders.deterministic import deterministic
from ..encoders.encoder import Encoder
from ..errors import DataError
from ..features.batches import BatchEncoder
from ..features.decoders import Decoders
from ..features.decoding import Batch
from ..features.proof import Proven, sync
from ..features.store import FORMAT, GROUP, FeatureStore, content_digest, deciding_versions
from ..runtime.heap import freed_memory_kept
from ..runtime.machine import available_cores
from ..runtime.progress import Progress
from ..storage.files import explain_os_errors, remove, seal, sha256_file, write_json
from ..storage.provenance import code_digest
from ..storage.work import WorkFolder, fingerprint

if TYPE_CHECKING:
    from ..config.cache import CacheSettings
    from .project import Project, Run

__all__ = ["cache_features", "run_cache"]

log = logging.getLogger(__name__)

_STORE = "features.zarr"


def cache_features(
    index_path: Path | str,
    encoder: Encoder,
    settings: CacheSettings,
    target: Path | str,
    run: Run,
    *,
    progress: bool = True,
    decoders: Decoders | None = None,
) -> FeatureStore:
    """Encode every image of an index into a feature store, or go on with what a killed run has left.

    Args:
        index_path: Parquet index of one split.
        encoder: the frozen encoder, on the device to encode on.
        settings: dtype, precision, decoding of JPEG images, batch size, chunk and shard size.
        target: where to put the Zarr group; replaced when whole.
        run: where partial work lives, and who shares it: ranks share the unfinished shards. The files must lie on a
            file system that all of them see.
        progress: say how far it is.
        decoders: the processes that decode, which several splits encoded one after another may share; ``None``: of
            this call alone.

    Returns:
        The store at ``target``. Its bytes do not depend on ``workers``, ``ranks`` or interruptions.

    Raises:
        DataError: the index holds no images, or an image cannot be decoded.
        NumericalError: a feature is NaN, infinite, or beyond the range of float16; the sample is named.
        ArtifactError, ResourceError, BusyError, SettingsError: see their descriptions.
    """
    index_path, target = Path(index_path), Path(target)
    index = Index.open(index_path)
    if len(index) == 0:
        raise DataError(f"the index {index_path} holds no images: check the dataset's settings and build it again")
    record = fingerprint(
        settings=settings.model_dump(mode="json"),
        index=index.digest,
        encoder=encoder.describe(),
        device=encoder.device.type,
        precision=str(resolve_precision(settings.precision, encoder.device)),
        code=code_digest("clpdd.stages.cache", *encoder.code),
    )
    ranks = run.ranks
    work = run.folder("cache", f"{encoder.name}/{index.split}", record)
    with (
        contextlib.nullcontext(decoders) if decoders is not None else Decoders() as pool,
        shared(work, ranks),
        deterministic(encoder.device),
    ):
        job = _Encoding(index_path, index, encoder, settings, work, run, progress, pool)
        produce(work, ranks, job.run if ranks.is_main else job.follow, {_STORE: target}, discard=("shards.json",))
    return FeatureStore.open(target)


class _Encoding:
    """One run of encoding one split into ``work.out``: rank 0's part is ``run``, that of the others ``follow``."""

    def __init__(
        self,
        index_path: Path,
        index: Index,
        encoder: Encoder,
        settings: CacheSettings,
        work: WorkFolder,
        run: Run,
        progress: bool,
        decoders: Decoders,
    ) -> None:
        self.index_path, self.index, self.encoder, self.settings = index_path, index, encoder, settings
        self.work, self.store, self.progress = work, work.out / _STORE, progress
        self.ranks, self.workers, self.decoders = run.ranks, run.runtime.workers, decoders
        self.proven = Proven(self.store, work.path, run.ranks.rank)
        self.dtype = np.dtype(settings.dtype)

    def run(self) -> None:
        with explain_os_errors("write features to", self.store):
            self.proven.recall()
            array = self._features_array()
            names = [self._name(array, k) for k in range(self._shards)]
            todo = [k for k, name in enumerate(names) if name not in self.proven.hashes]
            if len(todo) < len(names):
                log.info("%d of %d shards are finished already: going on", len(names) - len(todo), len(names))
            began = time.monotonic()
            self._encode(array, self.ranks.share(self.ranks.broadcast_object(todo)))
            self.ranks.barrier()
            if todo:
                count = sum(stop - start for start, stop in map(self._rows, todo))
                self.work.note(images_per_second=count / (time.monotonic() - began))
            self.proven.merge()
            self._complete(names)

    def follow(self) -> None:
        """Encode this rank's share of what rank 0 finds unfinished."""
        todo = self.ranks.broadcast_object(None)
        with explain_os_errors("write features to", self.store):
            array = zarr.open_array(str(self.store / "features"), mode="r+", zarr_format=3)
            self._encode(array, self.ranks.share(todo))
        self.ranks.barrier()

    @staticmethod
    def _name(array: zarr.Array[Any], shard: int) -> str:
        return f"features/{array.metadata.encode_chunk_key((shard, 0))}"

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

    def _encode(self, array: zarr.Array[Any], todo: list[int]) -> None:
        if not todo:
            return
        encoder = BatchEncoder(self.index, self.encoder, self.settings)
        batches = [batch for shard in todo for batch in self._batches(shard)]
        head: list[tuple[int, NDArray[Any]]] = []
        workers = self.workers
        if workers is None:
            cores = max(1, available_cores() // self.ranks.sharing_cores)
            head, workers = encoder.trial(batches, cores, self.decoders)
        rest = batches[len(head) :]
        count = sum(stop - start for start, stop in batches)
        with (
            freed_memory_kept(),
            self.decoders.decode(self.index_path, encoder.preprocess, rest, workers) as decoded,
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            Progress(
                len(self.index) if self.ranks.size == 1 else count,
                f"{self.encoder.name} {self.index.split}",
                "image",
                done=len(self.index) - count if self.ranks.size == 1 else 0,
                show=self.progress and self.ranks.is_main,
            ) as bar,
        ):
            writing: Future[None] | None = None
            encoded = itertools.chain(head, encoder.encoded(decoded, rest))
            for shard in todo:
                start, stop = self._rows(shard)
                rows = np.empty((stop - start, self.encoder.dim), self.dtype)
                for first, features in itertools.islice(encoded, len(self._batches(shard))):
                    rows[first - start : first - start + len(features)] = features
                    bar.update(len(features))
                # One shard in memory is written while the next is filled.
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, array, self._name(array, shard), start, rows)
            if writing is not None:
                writing.result()

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
            sync(self.store / name)
        hashes = self.proven.hashes | {name: sha256_file(self.store / name) for name in names}
        features = zarr.open_array(str(self.store / "features"), mode="r", zarr_format=3)
        step = self.settings.shard_rows
        precision = resolve_precision(self.settings.precision, self.encoder.device)
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
            "precision": str(precision).removeprefix("torch."),
            "jpeg": self.settings.jpeg,
            "versions": deciding_versions(),
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


def run_cache(project: Project, encoder: str) -> None:
    """Features of every split of a project.

    Settings of ``distill`` may have changed since the index was made: what cannot be distilled is refused before hours
    of encoding.
    """
    layout = project.layout
    project.take("cache", encoder, layout.features(encoder, "train"), "cache", encoder=encoder)
    project.refuse_small_classes()
    model = project.encoder(encoder)
    project.refuse_oblong(encoder, model.shape)
    with Decoders() as decoders:
        for split, index in layout.indexes.items():
            target = layout.features(encoder, split)
            cache_features(index, model, project.settings.cache, target, project.run, decoders=decoders)
