"""Rows of an index -> batches of pixels, here or in worker processes: always the same batches in the same order.

Worker processes import neither torch nor timm, so that they start in a fraction of a second and stay small. They are
spawned, never forked. Worker ``k`` of ``n`` decodes batches ``k, k + n, ...`` and sends the bytes down a pipe of its
own; the pipe is the back-pressure (a worker is at most one batch ahead) and the life line (a worker whose reader is
gone, however it died, ends at its next write).
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np

from .. import errors
from ..datasets.index import Index
from ..encoders.preprocessing import Pixels, Preprocess
from ..errors import ClpddError, DataError, ResourceError

__all__ = ["Batch", "choose_workers", "decode_batches", "decode_rows"]

log = logging.getLogger(__name__)

Batch = tuple[int, int]
"""Rows ``[start, stop)`` of an index."""

_START_SECONDS = 1.0  # about what it takes to start a worker process
_MARGIN = 1.1  # of decoding over encoding, so that the slower batches do not hold the encoder up


def choose_workers(decoding: float, encoding: float, batches: int, cores: int) -> int:
    """Processes that decode as fast as the encoder encodes.

    Args:
        decoding, encoding: seconds that one batch takes.
        batches: batches to come.
        cores: processors that may be used, >= 1.

    Returns:
        In ``[1, cores]``; 0 where all decoding is done before another process has started.
    """
    if decoding * batches < _START_SECONDS:
        return 0
    return max(1, min(cores, math.ceil(_MARGIN * decoding / max(encoding, 1e-9))))


def decode_rows(index: Index, preprocess: Preprocess, start: int, stop: int) -> Pixels:
    """Pixels ``(stop - start, 3, height, width)`` uint8 of rows ``[start, stop)``.

    Raises ``DataError`` naming the sample when an image cannot be decoded.
    """
    pixels = np.empty((stop - start, 3, *preprocess.shape), dtype=np.uint8)
    for row in range(start, stop):
        image = index.image(row)
        try:
            pixels[row - start] = preprocess(image)
        except DataError as error:
            raise DataError(f"image {index.ids[row]!r} of the {index.split} split {error}") from None
    return pixels


@contextlib.contextmanager
def decode_batches(
    index_path: Path, preprocess: Preprocess, batches: Sequence[Batch], workers: int
) -> Iterator[Iterator[Pixels]]:
    """An iterator over the pixels of ``batches``, in their order, decoded ahead of the caller.

    Args:
        workers: processes that decode; 0 decodes in the caller's thread. The pixels do not depend on it.

    Raises:
        ClpddError: whatever a worker ran into, as the class it would have been in this process; ``ResourceError``
            when a worker was killed. No worker outlives the ``with`` block.
    """
    if workers == 0:
        index = Index.open(index_path)
        yield (decode_rows(index, preprocess, start, stop) for start, stop in batches)
        return
    crew: list[tuple[SpawnProcess, Connection]] = []
    stop_receiving = threading.Event()
    arrived: queue.Queue[Pixels | Exception] = queue.Queue(maxsize=max(2, workers))
    thread = threading.Thread(
        target=_receive, args=(crew, batches, preprocess.shape, arrived, stop_receiving), name="receive", daemon=True
    )
    try:
        for k in range(min(workers, len(batches))):
            crew.append(_start_worker(k, index_path, preprocess, batches[k :: min(workers, len(batches))]))
        thread.start()
        yield _in_order(arrived, len(batches))
    finally:
        stop_receiving.set()
        for process, _ in crew:
            process.terminate()
        if thread.ident is not None:
            thread.join()
        for process, pipe in crew:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()


def _start_worker(
    number: int, index_path: Path, preprocess: Preprocess, batches: Sequence[Batch]
) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    try:
        process = context.Process(
            target=_work,
            args=(str(index_path), preprocess, list(batches), sender),
            name=f"decode-{number}",
            daemon=True,
        )
        with _without_main():
            process.start()
    except OSError as error:
        raise ResourceError(f"could not start a decoding process ({error}): lower runtime.workers") from error
    finally:
        # Our copy of the writing end: were it left open, the death of the worker would go unnoticed.
        sender.close()
    return process, receiver


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not import the caller's script, which may lack a main guard or be no file at all.

    A worker needs nothing of it, and running it a second time would start everything over.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, object] = {
        name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__
    }
    main.__dict__["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.pop("__spec__")
        main.__dict__.update(hidden)


def _work(index_path: str, preprocess: Preprocess, batches: list[Batch], pipe: Connection) -> None:
    """Body of a worker: an empty message and then pixels for every batch, or one message with the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        try:
            index = Index.open(Path(index_path))
            for start, stop in batches:
                pixels = decode_rows(index, preprocess, start, stop)
                pipe.send_bytes(b"")
                _write_all(pipe.fileno(), pixels.reshape(-1).data)
        except BrokenPipeError:
            raise
        except ClpddError as error:
            pipe.send_bytes(json.dumps({"kind": type(error).__name__, "message": str(error)}).encode())
        except Exception:
            pipe.send_bytes(json.dumps({"kind": "", "message": traceback.format_exc()}).encode())
    except BrokenPipeError:
        pass  # nobody reads any more: the parent is gone or has stopped


def _receive(
    crew: Sequence[tuple[SpawnProcess, Connection]],
    batches: Sequence[Batch],
    shape: tuple[int, int],
    arrived: queue.Queue[Pixels | Exception],
    stopped: threading.Event,
) -> None:
    """Body of the receiving thread: moves batches from the pipes into the queue, in order."""
    for k, (start, stop) in enumerate(batches):
        process, pipe = crew[k % len(crew)]
        item: Pixels | Exception
        try:
            trouble = pipe.recv_bytes()
            if trouble:
                item = _error(trouble)
            else:
                item = np.empty((stop - start, 3, *shape), np.uint8)
                _read_all(pipe.fileno(), item.reshape(-1).data)
        except (EOFError, OSError):
            process.join(timeout=5)
            item = ResourceError(_why_ended(process.exitcode))
        while not stopped.is_set():
            try:
                arrived.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if stopped.is_set() or isinstance(item, Exception):
            return


def _why_ended(code: int | None) -> str:
    """A worker's end in words: only what was killed may have wanted for memory."""
    if code is not None and code >= 0:
        return (
            f"a decoding process could not run here (exit code {code}, see what it wrote above): decode in this "
            f"process, runtime.workers: 0, and run again, finished shards are kept"
        )
    return (
        f"a decoding process ended unexpectedly (exit code {code}), most often for want of memory: lower "
        f"runtime.workers or cache.batch_size and run again, finished shards are kept"
    )


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_all(descriptor: int, data: memoryview) -> None:
    """Fill ``data``, straight from the pipe: ``Connection`` would copy it three times. Raises ``EOFError``."""
    while data:
        count = os.readv(descriptor, [data])
        if not count:
            raise EOFError
        data = data[count:]


def _error(message: bytes) -> Exception:
    told = json.loads(message)
    kind = getattr(errors, told["kind"], None) if told["kind"] else None
    if isinstance(kind, type) and issubclass(kind, ClpddError):
        return kind(told["message"])
    return RuntimeError(f"a decoding process failed:\n{told['message']}")


def _in_order(arrived: queue.Queue[Pixels | Exception], count: int) -> Iterator[Pixels]:
    for _ in range(count):
        item = arrived.get()
        if isinstance(item, Exception):
            raise item
        yield item
