"""Processes that decode images ahead of an encoder: started once, for one split after another.

They import neither torch nor timm, so that they start in a fraction of a second and stay small. They are spawned, never
forked. Of each job, worker ``k`` of ``n`` decodes batches ``k, k + n, ...`` and sends the bytes down a pipe of its own;
the pipe is the back-pressure (a worker is at most one batch ahead) and the life line (a worker whose reader is gone,
however it died, ends at its next write, or at once where it waits for a job).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .. import errors
from ..datasets.index import Index
from ..encoders.preprocessing import Pixels, Preprocess
from ..errors import ClpddError, ResourceError
from .decoding import Batch, decode_rows

__all__ = ["Decoders"]

_PATIENCE = 5.0  # seconds for a process to end
_hiding = threading.Lock()

_Share = tuple[str, Preprocess, list[Batch]]
"""A worker's part of a job: the index, what its images go through, its batches."""


class Decoders:
    """A pool of decoding processes, started when a job first asks for them. Use as a context manager.

    A job whose batches have all come leaves its workers waiting for the next one. After any other, one that failed or
    whose reader stopped early, all workers are ended, so that none holds batches that nobody waits for; the next job
    starts new ones.

    Attributes:
        batch_seconds: what a batch takes to decode and to encode, kept here by whoever has measured it for the jobs to
            come, all of one encoder; ``None`` until then.
    """

    def __init__(self) -> None:
        self.batch_seconds: tuple[float, float] | None = None
        self._workers: list[_Worker] = []
        self._at_work = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Processes that have been started and not ended."""
        return len(self._workers)

    def close(self) -> None:
        """End all workers, whatever they are doing, and wait until they are gone."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()

    @contextlib.contextmanager
    def decode(
        self, index_path: Path, preprocess: Preprocess, batches: Sequence[Batch], workers: int
    ) -> Iterator[Iterator[Pixels]]:
        """An iterator over the pixels of ``batches``, in their order, decoded ahead of the caller.

        Args:
            index_path: Parquet index of the split that ``batches`` are rows of.
            preprocess: what decoded images go through.
            workers: processes that decode; 0 decodes in the caller's thread. The pixels do not depend on it.

        Yields:
            Arrays ``(b, 3, height, width)`` uint8 of the batches' ``b`` rows.

        Raises:
            ClpddError: whatever a worker ran into, as the class it would have been in this process; ``ResourceError``
                when a worker was killed or could not be started.
            RuntimeError: another job of this pool is not over.
        """
        if self._at_work:
            raise RuntimeError("these decoders are at work on another job: leave its with block first")
        workers = min(workers, len(batches))
        if workers == 0:
            index = Index.open(index_path)
            yield (decode_rows(index, preprocess, start, stop) for start, stop in batches)
            return
        job = _Job(batches, preprocess.shape, workers)
        self._at_work = True
        try:
            for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
                self._workers.remove(worker)  # it ended while it had nothing to do
                worker.end()
            while len(self._workers) < workers:
                self._workers.append(_Worker(len(self._workers)))
            crew = self._workers[:workers]
            for k, worker in enumerate(crew):
                worker.send((str(index_path), preprocess, list(batches[k::workers])))
            job.start(crew)
            yield job.pixels()
        finally:
            whole = job.whole.is_set()
            job.stopped.set()
            if not whole:
                for worker in self._workers:  # the receiving thread may be waiting for one
                    worker.process.terminate()
            job.join()
            if not whole:
                self.close()
            self._at_work = False


class _Worker:
    """One process: jobs go in by one pipe, pixels come out of another."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        jobs, self._jobs = context.Pipe(duplex=False)
        self.pixels, pixels = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(jobs, pixels), name=f"decode-{number}", daemon=True)
        try:
            with _without_main():
                self.process.start()
        except OSError as error:
            self._jobs.close()
            self.pixels.close()
            raise ResourceError(f"could not start a decoding process ({error}): lower runtime.workers") from error
        finally:
            # Our copies of the worker's ends: were they left open, its death would go unnoticed.
            jobs.close()
            pixels.close()

    def send(self, job: _Share) -> None:
        """Give it a job. Raises ``ResourceError`` when it has ended."""
        try:
            self._jobs.send(job)
        except OSError:
            raise self.ended() from None

    def receive(self, count: int, shape: tuple[int, int]) -> Pixels | Exception:
        """The next ``count`` images, or why there are none."""
        try:
            trouble = self.pixels.recv_bytes()
            if trouble:
                return _error(trouble)
            images = np.empty((count, 3, *shape), np.uint8)
            _read_all(self.pixels.fileno(), images.reshape(-1).data)
            return images
        except (EOFError, OSError):
            return self.ended()

    def ended(self) -> ResourceError:
        """Why it is gone."""
        self.process.join(timeout=_PATIENCE)
        return ResourceError(_why_ended(self.process.exitcode))

    def end(self) -> None:
        """Wait for a process that was told to end, and make it."""
        self.process.join(timeout=_PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._jobs.close()
        self.pixels.close()


class _Job:
    """Batches on their way: a thread moves them from the pipes into a queue, in order.

    Attributes:
        whole: every batch has left its pipe, so that nothing of this job is in any.
        stopped: nobody takes batches any more.
    """

    def __init__(self, batches: Sequence[Batch], shape: tuple[int, int], workers: int) -> None:
        self.batches, self.shape = batches, shape
        self.whole, self.stopped = threading.Event(), threading.Event()
        self._arrived: queue.Queue[Pixels | Exception] = queue.Queue(maxsize=max(2, workers))
        self._thread: threading.Thread | None = None

    def start(self, crew: Sequence[_Worker]) -> None:
        thread = threading.Thread(target=self._receive, args=(crew,), name="receive", daemon=True)
        thread.start()
        self._thread = thread

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def pixels(self) -> Iterator[Pixels]:
        for _ in self.batches:
            item = self._arrived.get()
            if isinstance(item, Exception):
                raise item
            yield item

    def _receive(self, crew: Sequence[_Worker]) -> None:
        for k, (start, stop) in enumerate(self.batches):
            item = crew[k % len(crew)].receive(stop - start, self.shape)
            if k == len(self.batches) - 1 and not isinstance(item, Exception):
                self.whole.set()  # before it can be taken: whoever has it may end the job
            while not self.stopped.is_set():
                try:
                    self._arrived.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self.stopped.is_set() or isinstance(item, Exception):
                return


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not import the caller's script, which may lack a main guard or be no file at all.

    A worker needs nothing of it, and running it a second time would start everything over. One thread at a time.
    """
    main = sys.modules["__main__"]
    with _hiding:
        hidden: dict[str, object] = {
            name: main.__dict__.pop(name) for name in ("__spec__", "__file__") if name in main.__dict__
        }
        main.__dict__["__spec__"] = None
        try:
            yield
        finally:
            main.__dict__.pop("__spec__")
            main.__dict__.update(hidden)


def _work(jobs: Connection, pixels: Connection) -> None:
    """Body of a worker: for every job its batches, then the next, until there is nobody to give one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what follows
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone or has stopped
        on = True
        while on:
            job: _Share = jobs.recv()
            on = _decode(*job, pixels)


def _decode(index_path: str, preprocess: Preprocess, batches: list[Batch], pipe: Connection) -> bool:
    """An empty message and then pixels for every batch, or one message with the error; whether there was none."""
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
    else:
        return True
    return False


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
