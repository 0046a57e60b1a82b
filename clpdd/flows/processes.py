"""Commands in killable process groups, and locks that end with their holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["Line", "allow_starts", "environment", "holding", "run", "stop_all", "stopping"]

Line = Callable[[str], None]

_HERE = Path(__file__).parent
_TAIL = 12


class _Running:
    """The process groups of this process that are alive, so that they can be stopped from another thread."""

    def __init__(self) -> None:
        self.guards: set[subprocess.Popen[str]] = set()
        self.lock = threading.Lock()
        self.stopping = threading.Event()


_running = _Running()


def stopping() -> bool:
    """Whether ``stop_all`` was called: then nothing is started or retried any more."""
    return _running.stopping.is_set()


def stop_all() -> None:
    """Ask every running command to save and stop, wait for them, and let nothing new start. For any thread."""
    _running.stopping.set()
    with _running.lock:
        guards = list(_running.guards)
    for guard in guards:
        with contextlib.suppress(ProcessLookupError):
            guard.send_signal(signal.SIGTERM)
    for guard in guards:
        guard.wait()


def allow_starts() -> None:
    """Take back ``stop_all``, at the beginning of a flow run in a process that has stopped one before."""
    _running.stopping.clear()


def environment() -> dict[str, str]:
    """The environment in which commands of ``dvc.yaml``, and DVC itself, run."""
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    # commands of dvc.yaml (`clpdd`, `python`) are those of the interpreter that runs this, activated or not
    return os.environ | {"PATH": f"{folder}{os.pathsep}{path}", "PYTHONUNBUFFERED": "1", "DVC_NO_ANALYTICS": "1"}


def run(
    command: Sequence[str],
    folder: Path,
    on_line: Line,
    grace: float = 30.0,
    env: dict[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run ``command`` under ``guard.py``; every line it writes goes to ``on_line``.

    Returns its exit code and last lines. Whatever interrupts this call (cancellation, a signal's exception), the
    command's process group gets SIGTERM, ``grace`` seconds, SIGKILL, and the interruption is raised again.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    with _running.lock:
        if _running.stopping.is_set():
            return 128 + signal.SIGTERM, ["not started: the run is being stopped"]
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_HERE / "guard.py"), str(grace), *command],
            cwd=folder,
            env=env or environment(),
            stdin=subprocess.PIPE,  # never written to: its end tells the guard that this process died
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        _running.guards.add(guard)
    try:
        assert guard.stdout is not None
        for line in guard.stdout:  # universal newlines: a progress bar's carriage returns end lines too
            line = line.rstrip()
            if line:
                tail.append(line)
                on_line(line)
        return guard.wait(), list(tail)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            guard.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(grace + 5)
        guard.kill()  # its command follows: nothing else holds its pipe, and the group was signalled already
        raise
    finally:
        with _running.lock:
            _running.guards.discard(guard)
        for stream in (guard.stdin, guard.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@contextlib.contextmanager
def holding(path: Path, waiting: Callable[[str], None] | None = None, poll: float = 0.1) -> Iterator[None]:
    """Hold an exclusive ``flock`` on ``path``; ``waiting`` is told once who holds it, while it is not free.

    A dead holder, however it died, frees it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    told = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting is not None and not told:
                    waiting(os.pread(descriptor, 128, 0).decode(errors="replace").strip() or "another process")
                    told = True
                time.sleep(poll)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)
