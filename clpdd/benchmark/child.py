"""One distillation in a process of its own: its peak of memory is its own, and it ends with its parent.

The order is a line of JSON on standard input, which the parent holds open; the answer is a line on standard output.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..catalogue.methods import METHODS
from ..config.distill import DistillSettings
from ..config.runtime import RuntimeSettings
from ..config.variants import MethodVariant
from ..encoders.loading import load_encoder
from ..errors import ClpddError, Preempted, ResourceError
from ..optimise.context import Snapshot, Watch
from ..runtime.machine import peak_memory_mb
from ..stages.distill import distill
from ..stages.project import Run, TrainingData
from ..storage.files import read_json, remove, write_json
from .plan import UNTIL_STOPPED
from .track import BudgetSpent, Track, read_track

__all__ = ["Order", "main", "run_apart"]

_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to distil, where its inputs lie, and where its points go. JSON values only.

    Attributes:
        encoder: arguments of ``load_encoder``.
        data: the fields of ``TrainingData``.
        settings: of the distillation, as ``DistillSettings`` dumps them.
        runtime: likewise of ``RuntimeSettings``.
        work: root of its partial work.
        out: folder of the result: ``track`` with the points of a method that optimises, else ``set``.
        steps: points by steps.
        seconds: points by the clock, at the last of which it ends.
        threads: of torch.
    """

    encoder: dict[str, Any]
    data: dict[str, str]
    method: str
    name: str
    settings: dict[str, Any]
    runtime: dict[str, Any]
    seed: int
    work: str
    out: str
    steps: list[int]
    seconds: list[float]
    threads: int


def run_apart(order: Order, tick: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Carry out ``order`` in a new process.

    Returns its ``peak_memory_mb`` and ``idle_memory_mb``, what of it was there before the distillation began, and in
    seconds ``setup_seconds`` until the first step, or ``selection_seconds`` of a method without steps; both are absent
    where an earlier attempt's work was continued before they were measured. ``tick`` is called every now and then;
    when it raises, the process saves its state and ends.

    Raises what the distillation raised; ``Preempted`` when the process was stopped.
    """
    command = [sys.executable, "-m", "clpdd.benchmark"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(vars(order)) + "\n")
                process.stdin.flush()
            while True:
                tick()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                    break
            said = process.stdout.read()  # one line, which waits in the pipe
        except BaseException:
            process.terminate()
            raise
    if not said:
        raise _unanswered(order.name, process.returncode)
    answer = json.loads(said)
    if "error" in answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return {key: float(value) for key, value in answer.items()}


def _unanswered(name: str, code: int) -> Exception:
    if code in {-signal.SIGTERM, -signal.SIGUSR1}:
        return Preempted(f"the distillation of {name} was stopped; the same command goes on")
    if code == -signal.SIGKILL:
        return ResourceError(f"the distillation of {name} was killed (out of memory?); its checkpoint is kept")
    return RuntimeError(f"the distillation of {name} ended with {code}: see above")


# -- in the process ----------------------------------------------------------------------------------------------------


def _carry_out(order: Order) -> dict[str, float]:
    torch.set_num_threads(order.threads)
    encoder, work, out = load_encoder(**order.encoder), Path(order.work), Path(order.out)
    settings = DistillSettings.model_validate_json(json.dumps(order.settings))
    runtime = RuntimeSettings.model_validate_json(json.dumps(order.runtime))
    idle = peak_memory_mb()
    track, timed = Track(out / "track", order.seconds), out / "timed.json"
    fresh = not any(work.rglob("done.json"))  # else some of it was made by an earlier attempt, or for another method

    begun = time.perf_counter()

    def shown(snapshot: Snapshot) -> None:
        if snapshot.step == 0 and not timed.exists():
            write_json(timed, {"setup_seconds": time.perf_counter() - begun})
        track(snapshot)

    def make() -> None:
        nonlocal begun
        begun = time.perf_counter()
        distill(
            MethodVariant(order.name, order.method, settings),
            TrainingData(**{name: Path(path) for name, path in order.data.items()}),
            encoder,
            out / "set",
            seed=order.seed,
            run=Run(work=work, runtime=runtime),
            watch=Watch(
                snapshots=range(UNTIL_STOPPED) if order.seconds else order.steps,
                on_snapshot=shown,
                budget=order.seconds[-1] if order.seconds else None,
            ),
        )

    try:
        make()
        entry = METHODS[order.method]
        if fresh and not (entry.optimises or entry.source):
            write_json(timed, {"selection_seconds": time.perf_counter() - begun})
        if {point.step for point in read_track(out / "track")} != set(order.steps):
            remove(work)  # already made as the source of `neighbor`, without snapshots: make it again
            make()
    except BudgetSpent:
        remove(work)
    memory = {"peak_memory_mb": peak_memory_mb(), "idle_memory_mb": idle}
    return memory | (read_json(timed) if timed.exists() else {})


def _end_with_parent() -> None:
    """Standard input closes when the parent ends, however it does: then stop as if asked to, saving the state."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Read an order, carry it out, answer and end."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("clpdd").setLevel(logging.INFO)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what follows
    order = Order(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer: dict[str, Any] = _carry_out(order)
        code = 0
    except ClpddError as error:
        answer, code = {"error": type(error).__name__, "message": str(error)}, error.exit_code
    with contextlib.suppress(BrokenPipeError):  # the parent was stopped, too, and waits for no answer
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(code)  # the thread that reads standard input holds the interpreter's lock on it
