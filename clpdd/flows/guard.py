"""Run one command so that nothing of it outlives its owner: ``python guard.py GRACE COMMAND [ARGUMENT ...]``.

The owner keeps a pipe to this process's standard input open. When the owner dies, however it dies (SIGKILL
included), the pipe closes; then, as on SIGTERM or SIGINT, the command's whole process group gets SIGTERM, at most
``GRACE`` seconds to save its state, and SIGKILL. Standard library only: it must start fast and hold little memory.
Exits with the command's code, or 128 + the number of the signal that ended it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from types import FrameType

__all__ = ["main"]

_POLL = 0.05


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main(arguments: list[str]) -> int:
    """Run ``arguments[1:]`` under guard with a grace of ``arguments[0]`` seconds; returns its exit code."""
    grace, command = float(arguments[0]), arguments[1:]
    asked = False
    hurried = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked, hurried
        hurried = asked  # a second request does not wait for the grace to pass
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    # its own session: signals to the command's group reach its children and never this process
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    owner: list[int] = [0]
    deadline: float | None = None
    while True:
        code = child.poll()
        if code is not None and not (deadline is not None and _group_lives(child.pid)):
            break  # when stopping, a shell may be gone while the command it started is still saving
        if deadline is None and asked:
            _signal(child.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
        if deadline is not None and (hurried or time.monotonic() > deadline):
            _signal(child.pid, signal.SIGKILL)
            code = child.wait()
            break
        try:
            readable, _, _ = select.select(owner, [], [], _POLL)
        except InterruptedError:
            continue
        if readable and not os.read(0, 4096):
            owner, asked = [], True
    _signal(child.pid, signal.SIGKILL)  # stragglers: helpers that their parent left behind
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
