"""The torture in a short form; ``make torture`` is the long one."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .torture.damage import Damage
from .torture.moments import MOMENTS, Moment, plan
from .torture.project import STAGES, Project
from .torture.punish import Punishment, Report, torture


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on a machine that does nothing else
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")
def test_a_pipeline_killed_at_every_stage_ends_in_the_bytes_of_an_untouched_one(tmp_path: Path) -> None:
    report = torture(tmp_path / "project", runs=1, kills=6, seed=2, methods=["clp"], say=print)
    print(report)
    assert report.passed, str(report)
    assert report.kills.total() >= 4
    assert len({stage for stage, _ in report.kills}) >= 4
    assert report.damages


def test_steps_are_excused_of_the_attempt_after_a_damaged_checkpoint_and_of_no_other(tmp_path: Path) -> None:
    project = Project.__new__(Project)
    project.data = tmp_path
    report = Report()
    run = Punishment(project, random.Random(0), [], report, tmp_path / "logs", lambda _: None)

    def attempt(first: int | None, last: int, damaged: bool) -> None:
        frames = tmp_path / "work" / "distill" / "e-clp" / "0" / "frames"
        frames.mkdir(parents=True, exist_ok=True)
        (frames / f"{last}.png").touch()
        run.harmed = damaged  # what a kill at the end of the attempt has left
        run.count_steps("" if first is None else f"continuing at step {first} of 60", 0.0)
        (frames / f"{last}.png").unlink()

    attempt(None, 12, damaged=True)
    attempt(4, 16, damaged=True)  # 8 back, for the damage of the attempt before
    attempt(8, 20, damaged=False)  # likewise
    assert (report.failures, report.repeated) == ([], [])
    attempt(12, 24, damaged=False)  # 8 back, for nothing
    assert report.failures == ["8 steps repeated, though checkpoints lie 5 apart"]
    assert report.repeated == [8]


def _stage(project: Project, session: int, name: str) -> int:
    """The process of a stage, as soon as it runs."""
    for _ in range(1000):
        running = project.stage(session)
        if running is not None and running[0] == name:
            return running[1]
        time.sleep(0.01)
    raise AssertionError(f"{name} does not begin")


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found through /proc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("late", [True, False])
def test_a_signal_that_finds_its_stage_done_ends_nothing(tmp_path: Path, late: bool) -> None:
    """A stand-in for DVC, which leaves SIGINT to its stages and stops after one that failed."""
    stages = tmp_path / "clpdd"
    stages.write_text("import sys, time; time.sleep(float(sys.argv[2])); print(sys.argv[1], flush=True)\n")
    dvc = tmp_path / "dvc.py"
    dvc.write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "reset = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "for name, seconds in (('index', sys.argv[2]), ('report', '8')):\n"
        "    done = subprocess.run([sys.executable, sys.argv[1] + '/clpdd', name, seconds], preexec_fn=reset)\n"
        "    if done.returncode:\n"
        "        sys.exit(1)\n"
        "    time.sleep(1)\n"
    )
    project = Project.__new__(Project)
    project.folder, project.data, project.mark = tmp_path, tmp_path, f"clpdd-torture-test-{tmp_path}"
    report, ended = Report(), tmp_path / "log"
    run = Punishment(project, random.Random(0), [], report, tmp_path / "logs", print)
    run.rng.choices = lambda *_, **__: ["SIGINT to the group"]  # type: ignore[method-assign]
    with ended.open("wb") as log:
        command = [sys.executable, str(dvc), str(tmp_path), "1" if late else "60"]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=project.environment, start_new_session=True)
    try:
        found = _stage(project, process.pid, "index")
        while late and project.stage(process.pid) is not None:
            time.sleep(0.01)
        assert run._kill(Moment("index", "publishing", lambda _: 0, (0.0, 0.0)), process, found) == (not late)
        assert report.kills.total() == (0 if late else 1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_plan_reaches_every_stage_and_every_moment() -> None:
    drawn = plan(
        random.Random(0), len(STAGES) * max(sum(m.stage == stage for m in MOMENTS) for stage in STAGES), STAGES
    )
    assert {(m.stage, m.name) for m in drawn} == {(m.stage, m.name) for m in MOMENTS}
    assert {m.stage for m in plan(random.Random(1), len(STAGES), STAGES)} == set(STAGES)


def test_damage_counts_as_noticed_in_whichever_log_but_only_after_it_was_done(tmp_path: Path) -> None:
    first, second = tmp_path / "000.log", tmp_path / "001.log"
    first.write_text("of an earlier damage: noticed\n")
    harmed = Damage("finished work: empty", "001.png", ("noticed",))
    harmed.mark(tmp_path)
    second.write_text("nothing to see\n")
    harmed.look(tmp_path)
    assert not harmed.noticed
    with first.open("a") as log:  # the stage of the first attempt has outlived its DVC, and goes on in its log
        log.write("this one was noticed\n")
    harmed.look(tmp_path)
    assert harmed.noticed


def test_the_summary_fails_when_anything_differs(tmp_path: Path) -> None:
    report = Report()
    assert report.passed
    report.damages.append(Damage("shard: flip", "c/0/0", ("noticed",)))
    (tmp_path / "000.log").write_text("it was noticed")
    report.damages[0].look(tmp_path)
    assert "damage noticed  1 of 1" in str(report)
    report.failures.append("different after run 0: data/x")
    assert not report.passed
    assert "FAILED" in str(report)
