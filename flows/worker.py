"""``python -m flows.worker``: a Prefect worker that leaves in good order.

A plain ``prefect worker start`` that gets SIGTERM leaves its runs behind. This one, on SIGTERM, SIGUSR1 (SLURM's
``--signal``) or SIGINT, asks each of its runs to save and to go back on the schedule, waits for them, and exits 0;
another worker, or this one when it is started again, goes on with them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

import psutil

from clpdd.cli.arguments import whole_number
from flows.environment import ROOT

__all__ = ["main"]

GRACE = 45.0
"""Seconds for all of it: 20 for the stages to save, the rest for Prefect's bookkeeping."""


def _runs(worker: psutil.Process) -> list[psutil.Process]:
    """The worker's own children: one process per flow run."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(worker.children())
    return []


def leave(worker: subprocess.Popen[bytes], grace: float = GRACE) -> None:
    """Stop a worker: no new runs, its runs saved and rescheduled, then the worker itself. Blocks up to ``grace``."""
    deadline = time.monotonic() + grace
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(worker.pid)
        process.suspend()  # it must not take the runs back while they are being put back
        runs = _runs(process)
        for run in runs:
            with contextlib.suppress(psutil.NoSuchProcess):
                run.terminate()
        while time.monotonic() < deadline and any(_alive(run) for run in runs):
            time.sleep(0.1)
        for run in runs:
            with contextlib.suppress(psutil.NoSuchProcess):
                run.kill()
    worker.kill()  # nothing is left that it could lose
    worker.wait()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker until it ends or a signal asks it to leave. Returns 0 after leaving in good order."""
    from flows.deploy import read_prefect_yaml

    parser = argparse.ArgumentParser(prog="python -m flows.worker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--name", help="name of the worker (default: Prefect chooses)")
    parser.add_argument("--limit", type=whole_number(1), default=4, help="flow runs at once (default: 4)")
    parser.add_argument("--grace", type=float, default=GRACE, help=f"seconds to leave in (default: {GRACE:g})")
    options = parser.parse_args(arguments)
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, ask)
    pool = read_prefect_yaml(ROOT / "prefect.yaml").deployments[0].work_pool.name
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--limit", str(options.limit)]
    command += ["--name", options.name] if options.name else []
    folder = os.path.dirname(sys.executable)  # `python` in prefect.yaml is the interpreter that runs this
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    worker = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    while worker.poll() is None and not asked:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(0.2)
    if asked:
        leave(worker, options.grace)
        return 0
    return worker.returncode


if __name__ == "__main__":
    sys.exit(main())
