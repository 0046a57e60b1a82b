"""One pass over many features: reading them back, and their moments."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec

from clpdd.moments import stream_moments

from .clock import seconds
from .table import Section

__all__ = ["streams"]

_BLOCK = 8192


def streams(rows: int, dim: int, classes: int) -> Section:
    """Rates of a store of float16 features as the cache stage lays it out, read from the page cache."""
    section = Section(f"Streams: {rows:,} x {dim} float16", ["what", "seconds", "rate"])
    with tempfile.TemporaryDirectory() as folder:
        array, plain = _written(Path(folder), rows, dim)
        size = rows * dim * 2 / 2**30
        read, raw = seconds(
            [lambda: [array[s : s + _BLOCK] for s in range(0, rows, _BLOCK)], lambda: np.fromfile(plain, np.float16)],
            torch.device("cpu"), 2,
        )  # fmt: skip
        section.add("reading the store, checksums checked", read, f"{size / read:.2f} GiB/s")
        section.add("reading a plain file of the same bytes", raw, f"{size / raw:.2f} GiB/s")
        labels = torch.randint(classes, (rows,))
        begun = time.perf_counter()
        stream_moments(_blocks(array, labels), classes)
        taken = time.perf_counter() - begun
        section.add("moments in float64, reading included", taken, f"{2e-9 * rows * dim * dim / taken:.1f} GFLOP/s")
        block = torch.randn(_BLOCK, dim, dtype=torch.float64)
        (product,) = seconds([lambda: block.T @ block], torch.device("cpu"), 3)
        share = 2e-9 * _BLOCK * dim * dim / product
        section.add("the float64 product alone, all rows", product * rows / _BLOCK, f"{share:.1f} GFLOP/s")
    return section


def _written(folder: Path, rows: int, dim: int) -> tuple[zarr.Array, Path]:  # type: ignore[type-arg]
    values = np.random.default_rng(0).standard_normal((_BLOCK, dim)).astype(np.float16)
    array = zarr.create_array(
        str(folder / "features"), shape=(rows, dim), dtype="float16", chunks=(512, dim), shards=(_BLOCK, dim),
        compressors=[Crc32cCodec()], filters=None, fill_value=float("nan"), zarr_format=3,
    )  # fmt: skip
    with (folder / "plain").open("wb") as plain:
        for start in range(0, rows, _BLOCK):
            part = values[: rows - start]
            array[start : start + len(part)] = part
            plain.write(part.tobytes())
    return array, folder / "plain"


def _blocks(array: zarr.Array, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[type-arg]
    for start in range(0, len(labels), _BLOCK):
        yield torch.from_numpy(np.array(array[start : start + _BLOCK])), labels[start : start + _BLOCK]
