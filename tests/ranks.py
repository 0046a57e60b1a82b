"""Processes started together as the ranks of one run, none of which outlives the test."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

__all__ = ["PATIENCE", "Launcher"]

PATIENCE = 240.0  # seconds until a process is taken to hang, however slow the machine
_GRACE = 40.0  # for torchrun to end its ranks


class Launcher:
    """Starts processes and, in the end, sees that none is left."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def start(self, arguments: Sequence[str], variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """A process of Python's with one thread (last bits may depend on it); its input ends when this process does."""
        places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **places, **(variables or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def ranks(self, *arguments: Sequence[str]) -> list[subprocess.Popen[str]]:
        """One run's ranks, each with the arguments given for it, as torchrun would start them."""
        size, port = len(arguments), _free_port()
        common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in range(size)]
        return [
            self.start(own, {name: str(value) for name, value in variables[rank].items()})
            for rank, own in enumerate(arguments)
        ]

    def end(self) -> None:
        """End what is still running."""
        for process in self._started:
            if process.poll() is None:
                process.terminate()  # torchrun ends its ranks, which are in sessions of their own
        for process in self._started:
            try:
                process.communicate(timeout=_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
