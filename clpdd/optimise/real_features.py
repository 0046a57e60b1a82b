"""Real features kept where they are quickest to reach: on the device, in the machine's memory, or on disk."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from ..runtime.machine import device_bytes, free_bytes

__all__ = ["Excerpt", "RealFeatures", "Store"]

log = logging.getLogger(__name__)

_DEVICE_SHARE = 0.2  # of a device's memory: the encoder needs the rest
_WIDE_SHARE = 0.03  # of a device's memory up to which features are widened to float32 there
_HOST_SHARE = 0.5
_LOADED = 65536  # rows read at once
_THREADS = 4
_AHEAD = 2  # blocks that are read before they are asked for


class Store(Protocol):
    """Where features are read from; ``clpdd.features.store.FeatureStore`` is one."""

    labels: Tensor
    dim: int

    def __len__(self) -> int: ...

    @property
    def chunk_rows(self) -> int:
        """Rows that are read together."""

    def stored(self, start: int, stop: int) -> Any:
        """NumPy array ``(stop - start, d)`` float16 or float32, a copy."""


class Excerpt:
    """Some rows of a store as a store of their own.

    Attributes:
        rows: their numbers in the whole.
    """

    def __init__(self, store: Store, rows: range) -> None:
        self.store, self.rows = store, rows
        self.labels, self.dim = store.labels[rows.start : rows.stop], store.dim

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def chunk_rows(self) -> int:
        """Rows that are read together."""
        return self.store.chunk_rows

    def stored(self, start: int, stop: int) -> Any:
        """See ``Store``."""
        first = self.rows.start
        return self.store.stored(first + start, min(first + stop, self.rows.stop))


class RealFeatures:
    """Features ``(N, d)`` of real images, less ``mean``, float32 on ``device`` when handed out.

    All places give the same bytes: features are kept as they are stored, or wider, and centred when they leave.
    ``close``, which ``contextlib.closing`` calls, ends the threads.

    Args:
        store: where they are read from.
        mean: ``(d,)`` on ``device``.
        where: ``"device"``; ``"host"``, the machine's memory, pinned for CUDA; ``"stream"``, read from the store by
            background threads; ``"auto"``, the first of these where they fit.
        sharers: processes that take host memory at the same time.
        memory: GiB of the device that may be used, as ``clpdd.runtime.machine.device_bytes`` takes it.

    Attributes:
        where: the place that was taken.
        labels: ``(N,)`` int64 on ``device``.
    """

    def __init__(
        self,
        store: Store,
        device: torch.device,
        mean: Tensor,
        where: str = "auto",
        sharers: int = 1,
        memory: float = 0.0,
    ) -> None:
        self.store, self.device, self.mean, self._memory = store, device, mean, memory
        self._host_share = _HOST_SHARE / sharers
        self.labels = store.labels.to(device)
        self.dtype = torch.from_numpy(store.stored(0, 1)).dtype
        self.where = self._place() if where == "auto" else where
        self._centred = False  # what is held, already
        self._held = None if self.where == "stream" else self._load()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="features")
        self._ahead: tuple[int, _Gathering] | None = None

    def __len__(self) -> int:
        return len(self.store)

    @property
    def on_device(self) -> int:
        """Bytes that are held on the device."""
        return self._held.nbytes if self._held is not None and self.where == "device" else 0

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    # -- where -----------------------------------------------------------------------------------------------------

    def _place(self) -> str:
        values = len(self) * self.store.dim
        narrow = values * self.dtype.itemsize
        usable = device_bytes(self.device, self._memory) * self._share
        if narrow <= usable:
            return "device"
        if self.device.type != "cpu" and narrow <= free_bytes(torch.device("cpu")) * self._host_share:
            log.info("features of %.1f GiB are kept in host memory: they do not fit on the device", narrow / 2**30)
            return "host"
        log.warning("features of %.1f GiB are read from disk at every step: they do not fit in memory", narrow / 2**30)
        return "stream"

    def _load(self) -> Tensor:
        device = self.device if self.where == "device" else torch.device("cpu")
        wide = self._share if self.device.type == "cpu" else _WIDE_SHARE
        if self.where == "device" and len(self) * self.store.dim * 4 <= device_bytes(device, self._memory) * wide:
            self.dtype, self._centred = torch.float32, True  # else widened and centred at every use
        pinned = self.where == "host" and self.device.type == "cuda"
        held = torch.empty(len(self), self.store.dim, dtype=self.dtype, device=device, pin_memory=pinned)
        for start in range(0, len(self), _LOADED):
            held[start : start + _LOADED] = torch.from_numpy(self.store.stored(start, start + _LOADED))
        if self._centred:
            held -= self.mean
        return held

    @property
    def _share(self) -> float:
        return self._host_share if self.device.type == "cpu" else _DEVICE_SHARE

    def _deliver(self, features: Tensor) -> Tensor:
        return features if self._centred else features.to(self.device, non_blocking=True).float() - self.mean

    # -- some rows -------------------------------------------------------------------------------------------------

    def batch(self, step: int, rows_of: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
        """Features ``(b, d)`` and labels ``(b,)`` of the rows ``rows_of(step)``, on the device.

        Where they are not on the device already, those of the next step are gathered meanwhile.
        """
        rows = rows_of(step)
        if self.where == "device":
            assert self._held is not None
            rows = rows.to(self.device)
            return self._deliver(self._held.index_select(0, rows)), self.labels[rows]
        gathering = self._ahead[1] if self._ahead is not None and self._ahead[0] == step else self._gather(rows)
        features = gathering.result()
        self._ahead = step + 1, self._gather(rows_of(step + 1))
        return self._deliver(features), self.labels[rows.to(self.device)]

    def _gather(self, rows: Tensor) -> _Gathering:
        """Begin to bring ``rows`` together, one task for every chunk of the store that holds some."""
        out = torch.empty(len(rows), self.store.dim, dtype=self.dtype, pin_memory=self.device.type == "cuda")
        if self._held is not None:
            return _Gathering(out, [self._pool.submit(self._pick, self._held, rows, out)])
        height = self.store.chunk_rows
        places = rows.argsort(stable=True)
        chunks, counts = (rows[places] // height).unique_consecutive(return_counts=True)
        groups = zip(chunks.tolist(), places.split(counts.tolist()), strict=True)
        tasks = [self._pool.submit(self._read, chunk * height, rows, some, out) for chunk, some in groups]
        return _Gathering(out, tasks)

    @staticmethod
    def _pick(held: Tensor, rows: Tensor, out: Tensor) -> None:
        torch.index_select(held, 0, rows, out=out)

    def _read(self, start: int, rows: Tensor, places: Tensor, out: Tensor) -> None:
        """Put those rows into ``places`` of ``out`` that lie in the chunk beginning at ``start``."""
        chunk = torch.from_numpy(self.store.stored(start, start + self.store.chunk_rows))
        out[places] = chunk[rows[places] - start]

    # -- all of them -----------------------------------------------------------------------------------------------

    def blocks(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All features and labels in blocks ``((b, d), (b,))`` of at most ``size`` rows, on the device, in order."""
        for start, features in self._raw_blocks(size):
            yield self._deliver(features), self.labels[start : start + size]

    def _raw_blocks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        starts = range(0, len(self), size)
        if self._held is not None:
            for start in starts:
                yield start, self._held[start : start + size]
            return
        waiting = deque(self._pool.submit(self._slice, start, size) for start in starts[:_AHEAD])
        for k, start in enumerate(starts):
            if k + _AHEAD < len(starts):
                waiting.append(self._pool.submit(self._slice, starts[k + _AHEAD], size))
            yield start, waiting.popleft().result()

    def _slice(self, start: int, size: int) -> Tensor:
        return torch.from_numpy(self.store.stored(start, start + size))


class _Gathering:
    """Rows that threads are putting together."""

    def __init__(self, out: Tensor, tasks: list[Future[None]]) -> None:
        self.out, self.tasks = out, tasks

    def result(self) -> Tensor:
        """The rows, when they are all there. Raises what a thread ran into."""
        for task in self.tasks:
            task.result()
        return self.out
