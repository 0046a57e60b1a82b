"""One pass over many features: reading them back, and their moments."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor
from zarr.codecs import Crc32cCodec

from clpdd.features.shards import ShardReader
from clpdd.functional.moments import stream_moments

from .clock import seconds
from .table import Section

__all__ = ["streams"]

_CHUNK, _BLOCK = 512, 8192


def streams(rows: int, dim: int, classes: int) -> Section:
    """Rates of a store of float16 features as the cache stage lays it out, read from the page cache."""
    section = Section(f"Streams: {rows:,} x {dim} float16", ["what", "seconds", "rate"])
    with tempfile.TemporaryDirectory() as folder:
        array, reader, plain = _written(Path(folder), rows, dim)
        buffer = np.empty((_BLOCK, dim), np.float16)
        starts = range(0, rows, _BLOCK)

        def as_bytes() -> None:
            with plain.open("rb", buffering=0) as file:
                while file.readinto(buffer.data.cast("B")):
                    pass

        def as_features() -> None:
            for start in starts:
                reader.read(start, buffer[: rows - start])

        runs: dict[str, Callable[[], object]] = {
            "the cache's reader, checksums checked": as_features,
            "Zarr's reader, checksums checked": lambda: [array[s : s + _BLOCK] for s in starts],
            "a plain file of the same bytes": as_bytes,
        }
        size = rows * dim * 2 / 2**30
        for name, taken in zip(runs, seconds(list(runs.values()), torch.device("cpu"), 2), strict=True):
            section.add(f"reading: {name}", taken, f"{size / taken:.2f} GiB/s")
        labels = torch.randint(classes, (rows,))
        begun = time.perf_counter()
        stream_moments(_blocks(reader, buffer, labels), classes)
        taken = time.perf_counter() - begun
        section.add("moments in float64, reading included", taken, f"{2e-9 * rows * dim * dim / taken:.1f} GFLOP/s")
        block = torch.randn(_BLOCK, dim, dtype=torch.float64)
        (product,) = seconds([lambda: block.T @ block], torch.device("cpu"), 3)
        share = 2e-9 * _BLOCK * dim * dim / product
        section.add("the float64 product alone, all rows", product * rows / _BLOCK, f"{share:.1f} GFLOP/s")
    return section


def _written(folder: Path, rows: int, dim: int) -> tuple[zarr.Array[Any], ShardReader, Path]:
    values = np.random.default_rng(0).standard_normal((_BLOCK, dim)).astype(np.float16)
    array = zarr.create_array(
        str(folder / "features"), shape=(rows, dim), dtype="float16", chunks=(_CHUNK, dim), shards=(_BLOCK, dim),
        compressors=[Crc32cCodec()], filters=None, fill_value=float("nan"), zarr_format=3,
    )  # fmt: skip
    with (folder / "plain").open("wb") as plain:
        for start in range(0, rows, _BLOCK):
            part = values[: rows - start]
            array[start : start + len(part)] = part
            plain.write(part.tobytes())
    return array, ShardReader(folder / "features", dim, "float16", _CHUNK, _BLOCK), folder / "plain"


def _blocks(reader: ShardReader, buffer: NDArray[np.float16], labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(labels), _BLOCK):
        part = buffer[: len(labels) - start]
        reader.read(start, part)
        yield torch.from_numpy(part).float(), labels[start : start + _BLOCK]
