"""A toy DVC project whose stages behave like the real ones, and a real Prefect server on 127.0.0.1."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

_HOME = tempfile.mkdtemp(prefix="clpdd-prefect-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["PREFECT_HOME"] = _HOME  # before anything imports Prefect
# a run that is held asks again every 30 s otherwise
os.environ["PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS"] = "3"

from flows import processes  # noqa: E402
from flows.environment import ROOT  # noqa: E402
from flows.serve import Served, serve  # noqa: E402

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Toy:
    """A DVC project: index -> cache@a, cache@b -> distill@{a,b}-{clp,random} -> report."""

    root: Path

    def steps(self, name: str) -> list[tuple[int, int, float]]:
        """(process, step, time) of every step a stage has taken, in order."""
        path = self.root / "clock" / name
        rows = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(int(p), int(s), float(t)) for p, s, t in (row.split() for row in rows)]

    def side_by_side(self, one: str, other: str) -> bool:
        """Whether two stages, each run once, ran at the same time."""
        (a, b), (c, d) = ((self.steps(name)[0][2], self.steps(name)[-1][2]) for name in (one, other))
        return max(a, c) < min(b, d)

    def fault(self, name: str, wish: str) -> None:
        """Make a stage misbehave, or wait, see ``toy.py``."""
        (self.root / "fault").mkdir(exist_ok=True)
        (self.root / "fault" / name).write_text(wish)

    def meet(self, one: str, other: str) -> None:
        """Let neither of two stages end before both have begun: a run that does not start both fails."""
        self.fault(one, f"meet {other}")
        self.fault(other, f"meet {one}")

    def hold(self, *names: str) -> None:
        """Let stages wait halfway, at step 5 of 10, until they are released or stopped."""
        for name in names:
            self.fault(name, "hold")

    def release(self, *names: str) -> None:
        """Let held stages go on, or run through when they are started again."""
        for name in names:
            (self.root / "fault" / name).unlink()

    def lock(self) -> dict[str, Any]:
        """What DVC has recorded, whatever the order of the stages."""
        stages: dict[str, Any] = yaml.safe_load((self.root / "dvc.lock").read_text())["stages"]
        return stages

    def wait_for(self, name: str, step: int, seconds: float = 120) -> None:
        """Wait until a stage has taken a step."""
        until(lambda: any(taken >= step for _, taken, _ in self.steps(name)), seconds, f"{name} at step {step}")


def until(happened: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for something; fail saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.1)


def gone(process: int) -> bool:
    """Whether a process has ended."""
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the worker, its runs' processes and Prefect's engines at once; the stages are not among them."""
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = [one for one in psutil.Process(process.pid).children(recursive=True) if of_prefect(one)]
    process.kill()
    for one in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait(60)


def of_prefect(process: psutil.Process) -> bool:
    """Whether a process runs Prefect; one that has ended since it was listed does not."""
    try:
        return "prefect" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def command(*arguments: str, root: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A dvc command in ``root``."""
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=check,
    )


def make_toy(
    root: Path,
    index: float = 0.2,
    cache: float = 0.5,
    distill: float = 0.5,
    methods: str = "clp, random",
    looks: bool = False,
) -> Toy:
    """A toy project in ``root``; the numbers are seconds of work.

    ``looks``: a stage ``inputs`` that always runs comes first, and notes what is in ``outside.txt``.
    """
    root.mkdir(parents=True)
    shutil.copy(HERE / "toy.py", root)
    (root / "params.yaml").write_text(f"seed: 0  # of everything\nencoders: [a, b]\nmethods: [{methods}]\n")
    e, m = "${item.encoder}", "${item.method}"
    stages: dict[str, dict[str, Any]] = {
        "index": {
            "cmd": f"python toy.py index {index} data/index.txt",
            "deps": ["toy.py"],
            "params": ["seed"],
            "outs": ["data/index.txt"],
        },
        "cache": {
            "matrix": {"encoder": "${encoders}"},
            "cmd": f"python toy.py cache@{e} {cache} data/features/{e}.txt data/index.txt",
            "deps": ["data/index.txt"],
            "params": ["seed"],
            "outs": [f"data/features/{e}.txt"],
        },
        "distill": {
            "matrix": {"encoder": "${encoders}", "method": "${methods}"},
            "cmd": f"python toy.py distill@{e}-{m} {distill} data/distilled/{e}/{m}.txt data/features/{e}.txt",
            "deps": [f"data/features/{e}.txt"],
            "params": ["seed"],
            "outs": [f"data/distilled/{e}/{m}.txt"],
        },
        "report": {
            "cmd": "python toy.py report 0.1 data/report.txt",
            "deps": ["data/distilled"],
            "params": ["seed"],
            "outs": ["data/report.txt"],
        },
    }
    if looks:
        (root / "outside.txt").write_text("as it was")
        always = {"always_changed": True, "cmd": "python toy.py inputs 0 data/inputs.txt outside.txt"}
        stages["index"] |= {"cmd": f"{stages['index']['cmd']} data/inputs.txt", "deps": ["toy.py", "data/inputs.txt"]}
        stages = {"inputs": always | {"outs": ["data/inputs.txt"]}, **stages}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, width=1000))
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    command("init", "--quiet", root=root)
    command("config", "core.analytics", "false", root=root)
    (root / ".dvcignore").write_text("/data/work\n")
    return Toy(root)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """A fresh toy project."""
    yield make_toy(tmp_path / "toy")
    processes.allow_starts()


def free_port() -> int:
    """A port that is free, and the next one too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A real server with the real deployments, and one that fires every minute; no worker. Lost after 35 s."""
    values = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    every_minute = values["deployments"][2] | {
        "name": "every-minute",
        "schedules": [{"slug": "minute", "cron": "* * * * *", "timezone": "Europe/Berlin", "active": True}],
        "parameters": {"targets": ["index"], "folder": str(make_toy(tmp_path_factory.mktemp("cron") / "toy").root)},
    }
    file = tmp_path_factory.mktemp("prefect") / "prefect.yaml"
    file.write_text(yaml.safe_dump(values | {"deployments": [*values["deployments"], every_minute]}))
    home = Path(_HOME) / "server"
    with serve(port=free_port(), home=home, worker=False, deploy=["--missed", "35", "--file", str(file)]) as running:
        yield running
        parts = [psutil.Process(part.pid) for part in running.parts.values()]
        everything = [process for part in parts for process in [part, *part.children(recursive=True)]]
    assert not [process for process in everything if process.is_running()]  # nothing outlives it
