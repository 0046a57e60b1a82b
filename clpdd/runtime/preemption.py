"""Asked to stop: finish the step, save, and leave with a documented exit code."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopRequest", "on_signal"]

_GRACE = 1.0  # seconds for the main thread to run a handler itself


class StopRequest:
    """While active, SIGTERM, SIGINT and SIGUSR1 (SLURM's warning) set ``name`` instead of ending the process.

    A second SIGINT interrupts at once. Outside the main thread, where Python allows no handlers, nothing is caught.
    """

    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def on_signal(handler: Callable[[int, FrameType | None], None]) -> None:
    """Run ``handler`` for the signals it is set for even while the main thread waits in a library, as for other ranks.

    Python runs handlers in the main thread, between instructions: one that ends the process comes too late there.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.detach(), warn_on_full_buffer=False)

    def listen() -> None:
        while number := heard.recv(1):
            if signal.getsignal(number[0]) == handler:  # and not one that notes it, in the middle of a step
                time.sleep(_GRACE)
                handler(number[0], None)

    threading.Thread(target=listen, name="signals", daemon=True).start()
