"""How far a stage is can be read in a log, and is not told where it would only be noise."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from clpdd.config.augment import AugmentSettings
from clpdd.config.distill import DistillSettings
from clpdd.errors import Preempted
from clpdd.methods.loading import load_method
from clpdd.optimise.context import Snapshot, Watch
from clpdd.runtime.progress import Progress
from clpdd.stages.distill import distill
from flows.artifacts import read_progress
from tests.runs import variant

from .conftest import World
from .contexts import context


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("clpdd.runtime.progress.time.monotonic", lambda: self.now)


def test_a_log_has_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress(1000, "distill", "step") as progress:
        for step in range(1000):
            clock.now += 1
            progress.read(loss=f"0.{step}")
            progress.update()
    lines = capsys.readouterr().err.splitlines()
    counts = [int(line.split(" ")[1]) for line in lines]
    assert counts[:5] == [5, 15, 35, 75, 135]
    assert {b - a for a, b in itertools.pairwise(counts[4:-1])} == {60}  # no more often in a long run
    assert lines[0] == "distill: 5 of 1000 steps, loss 0.4, 16:35 left"
    assert lines[-1] == "distill: 1000 of 1000 steps, loss 0.999"
    assert [read_progress(line) for line in lines] == [count / 10 for count in counts]  # Prefect's bar is fed by them


def test_one_long_piece_of_work_is_told_of_every_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress(2, "lgm sgd", "probe set") as progress:
        for _ in range(200):
            clock.now += 1
            progress.beat()
        lines = capsys.readouterr().err.splitlines()
        assert lines == ["lgm sgd: 0 of 2 probe sets"] * 6  # after 5, 15, 35, 75, 135 and 195 seconds
        progress.update(2)


def test_what_is_left_is_reckoned_from_what_this_run_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress(100, "cache", "image", done=90) as progress:
        clock.now += 10
        progress.rename("cache test")
        progress.update(2)
    assert capsys.readouterr().err.splitlines()[0] == "cache test: 92 of 100 images, 00:40 left"


def test_short_work_and_hidden_work_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress(100, "index", "image") as short:
        clock.now += 4.9
        short.update(50)
        clock.now += 100
        short.update(50)
    with Progress(100, "index", "image", show=False) as hidden:
        clock.now += 100
        hidden.update(50)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, terminal = Clock(monkeypatch), Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, "distill", "step") as progress:
        clock.now += 100
        progress.update(5)
    assert "distill:  50%|" in terminal.getvalue()
    assert "5 of 10" not in terminal.getvalue()


def test_a_log_that_nobody_takes_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress(10, "distill", "step") as progress:
        clock.now += 100
        progress.update(5)
    assert progress.done == 5


def test_a_distillation_tells_its_steps_to_a_log(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clpdd.runtime.progress._FIRST", 0.0)
    plain = AugmentSettings(flip=0.0, crop=False)
    settings = DistillSettings(steps=3, augmentations=1, augment=plain, validate_every=1)
    distill(variant("clp", settings), **world.inputs(tmp_path))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("distill: ")]
    assert [read_progress(line) for line in lines] == [pytest.approx(100 / 3), pytest.approx(200 / 3), 100]
    assert all(", loss " in line and ", val " in line for line in lines[1:])


def test_what_the_clock_ends_is_stopped_at_seconds_not_at_a_step_of_billions(world: World, tmp_path: Path) -> None:
    def stop(snapshot: Snapshot) -> None:
        if snapshot.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    plain = context(world, tmp_path, steps=2**31, augmentations=1, outer_batch=32)
    timed = dataclasses.replace(plain, watch=Watch(snapshots=range(2**31), on_snapshot=stop, budget=600.0))
    with pytest.raises(Preempted, match=r"^stopped by SIGTERM after \d+ of 600 seconds, step [23]; saved: "):
        load_method("clp")(timed)


def test_where_some_take_far_longer_no_time_left_is_reckoned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress(3, "evaluate", "result", even=False) as progress:
        clock.now += 10
        progress.update()
    assert capsys.readouterr().err == "evaluate: 1 of 3 results\nevaluate: 1 of 3 results\n"
