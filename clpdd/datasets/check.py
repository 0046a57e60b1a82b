"""Every chosen image decoded once and its digest taken: in parallel, in bounded memory, resumable."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..runtime.progress import Progress
from ..storage.files import sha256_bytes, write_bytes
from .decode import Undecodable, decode
from .listing import Files, Labels, Listing

__all__ = ["Checks", "check"]

_THREADS = 16
_BATCH = 64
_CHUNK = 4096
_SCHEMA = pa.schema(
    [("sha256", pa.binary(32)), ("width", pa.int32()), ("height", pa.int32()), ("problem", pa.string())]
)


@dataclass(frozen=True)
class Checks:
    """What is known of ``n`` images: about 40 bytes each, whatever their size.

    Attributes:
        digests: ``(n, 32)`` uint8, SHA-256 of the encoded image.
        sizes: ``(n, 2)`` int32, width and height as decoded; 0 of an image that cannot be used.
        problems: position -> why the image cannot be used.
    """

    digests: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    problems: dict[int, Undecodable]


def check(
    listing: Listing, rows: Labels, max_pixels: int, title: str, partial: Path | None = None
) -> Iterator[tuple[int, Checks]]:
    """Check ``rows`` of a listing, 4,096 at a time; yields the position of a chunk's first row, and the chunk.

    Args:
        rows: ``(n,)`` ascending.
        max_pixels: see ``decode``.
        partial: folder that takes every finished chunk. A later call finds it there, unless one of its images has
            changed since (``Listing.stamp``) or another Pillow decodes. ``None`` keeps nothing.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, Progress(len(rows), f"index {title}", "image") as bar:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK].tolist()
            key = None if partial is None else _key(listing, chunk, max_pixels)
            file = None if partial is None or key is None else partial / f"{key}.parquet"
            found = None if file is None else _recall(file, len(chunk))
            if found is None:
                found = _collect(pool, listing, chunk, max_pixels, bar)
                if file is not None:
                    _keep(file, found)
            else:
                bar.update(len(chunk))
            yield start, found


def _key(listing: Listing, rows: list[int], max_pixels: int) -> str | None:
    stamps = [listing.stamp(row) for row in rows]
    if None in stamps:
        return None
    return sha256_bytes("\n".join([PIL.__version__, str(max_pixels), *map(str, stamps)]).encode())


Result = tuple[bytes, int, int] | Undecodable


def _one(data: bytes | Undecodable, max_pixels: int) -> Result:
    if isinstance(data, Undecodable):
        return data
    try:
        image = decode(data, max_pixels)
    except Undecodable as problem:
        return problem
    return bytes.fromhex(sha256_bytes(data)), image.width, image.height


def _results(pool: ThreadPoolExecutor, listing: Listing, rows: list[int], max_pixels: int) -> Iterator[Result]:
    """``_one`` of every row, in order, with few images in memory; files are read by the threads themselves."""
    if isinstance(listing, Files):
        for start in range(0, len(rows), _BATCH):
            yield from pool.map(lambda row: _one(listing.read_one(row), max_pixels), rows[start : start + _BATCH])
        return
    items = listing.read(rows)
    while batch := list(islice(items, _BATCH)):
        yield from pool.map(lambda data: _one(data, max_pixels), batch)


def _collect(pool: ThreadPoolExecutor, listing: Listing, rows: list[int], max_pixels: int, bar: Progress) -> Checks:
    digests, sizes = np.zeros((len(rows), 32), np.uint8), np.zeros((len(rows), 2), np.int32)
    problems: dict[int, Undecodable] = {}
    results = _results(pool, listing, rows, max_pixels)
    for position, result in zip(range(len(rows)), results, strict=True):
        bar.update()
        if isinstance(result, Undecodable):
            problems[position] = result
        else:
            digests[position] = np.frombuffer(result[0], np.uint8)
            sizes[position] = result[1:]
    return Checks(digests, sizes, problems)


def _keep(file: Path, checks: Checks) -> None:
    problems = [str(checks.problems[i]) if i in checks.problems else None for i in range(len(checks.sizes))]
    columns = [[row.tobytes() for row in checks.digests], checks.sizes[:, 0], checks.sizes[:, 1], problems]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True)
    write_bytes(file, sink.getvalue())


def _recall(file: Path, count: int) -> Checks | None:
    if not file.exists():
        return None
    with contextlib.suppress(pa.ArrowException, OSError, ValueError, TypeError):  # damaged: made again
        table = pq.read_table(file, schema=_SCHEMA, page_checksum_verification=True)
        if len(table) == count:
            digests = np.frombuffer(b"".join(table.column("sha256").to_pylist()), np.uint8).reshape(count, 32)
            sizes = np.stack([table.column(name).to_numpy() for name in ("width", "height")], axis=1)
            told = enumerate(table.column("problem").to_pylist())
            return Checks(digests, sizes, {i: Undecodable(why) for i, why in told if why is not None})
    return None
