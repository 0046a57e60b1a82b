"""The flow against a real Prefect server on 127.0.0.1: real worker, real toy project, real kills."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.environment import ROOT
from flows.serve import Served

from .conftest import Toy, command, gone, kill, make_toy, until

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def client_of(served: Served) -> Iterator[SyncPrefectClient]:
    """A client of the server."""
    with temporary_settings({PREFECT_API_URL: served.api}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def client(served: Served) -> Iterator[SyncPrefectClient]:
    """A client of the server."""
    with client_of(served) as client:
        yield client


@contextlib.contextmanager
def worker(served: Served, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker, killed with all its runs at the end of the block if it still lives."""
    with open(served.logs / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.worker", "--name", name],
            cwd=ROOT,
            env=served.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        kill(process)


def test_a_worker_is_killed_whatever_of_its_children_has_ended() -> None:
    code = "import subprocess, sys, time; kept = subprocess.Popen(['true']); print(flush=True); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    worker.stdout.readline()
    (ended,) = psutil.Process(worker.pid).children()
    until(lambda: gone(ended.pid), 30, "the end of the child")
    with worker:
        kill(worker)
    assert worker.returncode == -signal.SIGKILL


def trigger(client: SyncPrefectClient, toy: Toy, deployment: str = "on-demand", **parameters: Any) -> UUID:
    """Ask for a run, as the button in the UI does."""
    found = client.read_deployment_by_name(f"clpdd/{deployment}")
    run = client.create_flow_run_from_deployment(found.id, parameters={"folder": str(toy.root), **parameters})
    return run.id


def ended(client: SyncPrefectClient, run: UUID, seconds: float = 180) -> FlowRun:
    """Wait for the end of a run."""

    def final() -> bool:
        state = client.read_flow_run(run).state
        return state is not None and state.is_final() and not state.is_crashed()

    until(final, seconds, f"the end of run {run}")
    return client.read_flow_run(run)


def state_names(client: SyncPrefectClient, run: UUID) -> list[str | None]:
    """Every state a run was in."""
    return [state.name for state in client.read_flow_run_states(run)]


def tasks(client: SyncPrefectClient, run: FlowRun, count: int) -> dict[str, TaskRun]:
    """The task runs of a run that has ended, by name; ``count`` of them, for the server learns of tasks, and of their
    states, a little later than of the flow's: until then it may know of none, or of some."""
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    found: dict[str, TaskRun] = {}

    def settled() -> bool:
        found.clear()
        found.update({task.name: task for task in client.read_task_runs(flow_run_filter=of_run)})
        return len(found) >= count and all(task.state is not None and task.state.is_final() for task in found.values())

    until(settled, 90, f"the final states of {count} tasks")
    assert len(found) == count, sorted(found)
    return found


def local(served: Served, toy: Toy, *arguments: str) -> subprocess.Popen[str]:
    """``python -m flows.pipeline`` that reports to the server."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline", "--folder", str(toy.root), *arguments],
        cwd=ROOT,
        env=served.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def plain(tmp_path: Path, *targets: str, **options: Any) -> dict[str, Any]:
    """What ``dvc repro`` records for the same project."""
    reference = make_toy(tmp_path / "plain", **options)
    (reference.root / "pace").write_text("0")
    command("repro", *targets, root=reference.root)
    return reference.lock()


def run_of(client: SyncPrefectClient, toy: Toy) -> FlowRun:
    """The one run in a toy project."""
    (run,) = [run for run in client.read_flow_runs() if run.parameters.get("folder") == str(toy.root)]
    return run


def lines(client: SyncPrefectClient, run: UUID) -> Sequence[str]:
    """What the run has logged."""
    found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))
    return [log.message for log in found]


@dataclass(frozen=True)
class Killed:
    """A run whose worker and flow process were killed with SIGKILL in the middle of its work."""

    toy: Toy
    run: UUID
    at: datetime.datetime


@pytest.fixture(scope="module")
def killed(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Made first, so that the other tests fill the time in which the server learns of it."""
    toy = make_toy(tmp_path_factory.mktemp("killed") / "toy")
    toy.hold("cache@a", "cache@b")
    with client_of(served) as client, worker(served, "killed") as first:
        run = trigger(client, toy, targets=["cache"])
        for encoder in "ab":
            toy.wait_for(f"cache@{encoder}", 5)
        kill(first)
    for encoder in "ab":
        stage = toy.steps(f"cache@{encoder}")[-1][0]
        until(lambda stage=stage: gone(stage), 60, "the end of the orphaned stage")  # type: ignore[misc]
    toy.release("cache@a", "cache@b")
    return Killed(toy, run, datetime.datetime.now(datetime.UTC))


@pytest.fixture(scope="module")
def heir(served: Served, killed: Killed) -> Iterator[subprocess.Popen[bytes]]:
    """The worker that comes after."""
    with worker(served, "heir") as process:
        yield process


def test_what_may_end_differently_is_tried_again_and_nothing_else_is(
    served: Served, client: SyncPrefectClient, killed: Killed, tmp_path: Path
) -> None:
    lost, bad, wrong = (make_toy(tmp_path / name) for name in ("lost", "bad", "wrong"))
    lost.fault("cache@a", "once 75")
    lost.fault("cache@b", "once kill")
    bad.fault("cache@a", "2")
    runs = [
        local(served, lost, "distill@a-clp", "cache"),
        local(served, bad),
        local(served, wrong, "-S", "distill.steps=0"),
    ]
    lost_said, bad_said, wrong_said = (run.communicate(timeout=180)[0] for run in runs)
    assert [run.returncode for run in runs] == [0, 1, 1], (lost_said, bad_said, wrong_said)

    found = tasks(client, run_of(client, lost), 4)
    assert {name: task.run_count for name, task in found.items()} == {
        "index": 1,
        "cache@a": 2,
        "cache@b": 2,
        "distill@a-clp": 1,
    }
    for encoder in "ab":  # no step twice: they went on where they were
        steps = [step for _, step, _ in lost.steps(f"cache@{encoder}")]
        assert steps == sorted(set(steps))

    run = run_of(client, bad)
    found = tasks(client, run, 5)
    assert found["cache@a"].run_count == 1
    assert found["cache@a"].state_name == "Failed"
    assert "the seed 0 cannot be used; allowed are others" in found["cache@a"].state.message  # type: ignore
    assert found["distill@b-clp"].state_name == "Completed"  # what does not need it goes on
    assert "distill@a-clp" not in found
    assert "not started: distill@a-clp, distill@a-random, report" in run.state.message  # type: ignore

    assert "distill.steps" in run_of(client, wrong).state.message  # type: ignore
    assert not (wrong.root / "clock").exists()  # refused before any work


def test_everything_listens_on_loopback_only(served: Served) -> None:
    listening = [
        connection.laddr.ip
        for part in served.parts.values()
        for process in [psutil.Process(part.pid), *psutil.Process(part.pid).children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 2
    assert set(listening) == {"127.0.0.1"}


def test_a_gpu_is_a_limit_that_is_kept(served: Served, tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", cache=1.5)
    run = local(served, toy, "cache", "--gpu", "clpdd-gpu")
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 0, said
    assert not toy.side_by_side("cache@a", "cache@b")


def test_without_a_server_the_result_is_the_same(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", looks=True)
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "home")}
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline", "--folder", str(toy.root), "cache"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed: 4 stages made, 0 up to date" in done.stderr
    assert toy.lock() == plain(tmp_path, "cache", looks=True)


def test_two_processes_of_dask_give_the_same(served: Served, tmp_path: Path) -> None:
    pytest.importorskip("prefect_dask")
    toy = make_toy(tmp_path / "toy")
    toy.meet("cache@a", "cache@b")
    done = subprocess.run(
        [sys.executable, "-m", "flows.scale", "--folder", str(toy.root), "cache"],
        cwd=ROOT,
        env=served.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert toy.lock() == plain(tmp_path, "cache")
    assert toy.side_by_side("cache@a", "cache@b")


def test_a_schedule_fires_by_itself(client: SyncPrefectClient, heir: object) -> None:
    by_schedule = DeploymentFilter(name=DeploymentFilterName(any_=["every-minute"]))

    def fired() -> bool:
        runs = client.read_flow_runs(deployment_filter=by_schedule)
        return any(run.state_name == "Completed" and run.auto_scheduled for run in runs)

    until(fired, 240, "a run fired by its schedule")
    deployment = client.read_deployment_by_name("clpdd/every-minute")
    client.update_deployment_schedule(deployment.id, deployment.schedules[0].id, active=False)  # not again


def test_sigkill_of_worker_and_flow_is_finished_by_the_next_worker(
    client: SyncPrefectClient, killed: Killed, heir: object, tmp_path: Path
) -> None:
    """No person does anything: missing heartbeats, crashed, started over, resumed."""
    toy = killed.toy
    done = ended(client, killed.run)
    assert done.state is not None
    assert done.state.name == "Completed", done.state.message
    names = state_names(client, killed.run)
    assert [name for name in names if name in ("Running", "Crashed", "AwaitingRetry", "Completed")] == [
        "Running",
        "Crashed",
        "AwaitingRetry",
        "Running",
        "Completed",
    ]
    (crashed,) = [state for state in client.read_flow_run_states(killed.run) if state.name == "Crashed"]
    assert (crashed.timestamp - killed.at).total_seconds() < 35 + 60  # the window, and the server's own rounds
    for encoder in "ab":
        assert [step for _, step, _ in toy.steps(f"cache@{encoder}")] == list(range(10))  # every step once
    assert toy.lock() == plain(tmp_path, "cache")


def test_a_run_equals_dvc_repro_and_the_next_one_is_cached(
    client: SyncPrefectClient, heir: object, tmp_path: Path
) -> None:
    toy = make_toy(tmp_path / "toy", methods="clp", looks=True)
    other = make_toy(tmp_path / "other")
    toy.hold("index")
    toy.meet("cache@a", "cache@b")
    run = trigger(client, toy)
    toy.wait_for("index", 1)
    second = trigger(client, other, targets=["index"])  # held until the first has ended
    until(lambda: "AwaitingConcurrencySlot" in state_names(client, second), 60, "the second trigger's wait")
    assert not other.steps("index")
    toy.release("index")
    done = ended(client, run)
    assert done.state is not None
    assert done.state.name == "Completed", done.state.message
    assert toy.side_by_side("cache@a", "cache@b")
    assert toy.lock() == plain(tmp_path, methods="clp", looks=True)
    assert {task.state_name for task in tasks(client, done, 7).values()} == {"Completed"}
    until(lambda: "distill@b-clp: step 10 of 10" in lines(client, run), 60, "the line of the last step")
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    keys = {artifact.key for artifact in client.read_artifacts(artifact_filter=of_run)}
    assert {"dvc-lock", "progress-cache-a", "progress-distill-b-clp"} <= keys

    assert ended(client, second).state.name == "Completed"  # type: ignore[union-attr]
    before = {name: toy.steps(name) for name in toy.lock()}
    again = ended(client, trigger(client, toy))
    assert {task.state_name for task in tasks(client, again, 7).values()} == {"Cached"}
    assert again.state.message == "0 stages made, 7 up to date"  # type: ignore[union-attr]
    assert {name: toy.steps(name) for name in toy.lock()} == before
    (toy.root / "outside.txt").write_text("as it is")  # what DVC does not see by itself
    changed = ended(client, trigger(client, toy, targets=["cache"]))
    assert changed.state.message == "4 stages made, 0 up to date"  # type: ignore[union-attr]


def test_a_trigger_during_a_nightly_evaluation_is_dropped(
    client: SyncPrefectClient, heir: object, tmp_path: Path
) -> None:
    toy = make_toy(tmp_path / "toy")
    toy.hold("index")
    run = trigger(client, toy, "scheduled-evaluation", targets=["index"])
    toy.wait_for("index", 1)
    second = trigger(client, toy, "scheduled-evaluation", targets=["index"])
    assert ended(client, second).state.name == "Cancelled"  # type: ignore[union-attr]
    toy.release("index")
    assert ended(client, run).state.name == "Completed"  # type: ignore[union-attr]


def test_sigterm_of_the_worker_saves_and_the_next_worker_goes_on(
    served: Served, client: SyncPrefectClient, heir: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    toy = make_toy(tmp_path / "toy")
    toy.hold("cache@a", "cache@b")
    run = trigger(client, toy, targets=["cache"])
    for encoder in "ab":
        toy.wait_for(f"cache@{encoder}", 5)
    heir.send_signal(signal.SIGUSR1)
    assert heir.wait(120) == 0
    assert state_names(client, run)[-1] == "AwaitingRetry"
    assert not (toy.root / "data/features/a.txt").exists()
    toy.release("cache@a", "cache@b")
    with worker(served, "successor"):
        assert ended(client, run).state.name == "Completed"  # type: ignore[union-attr]
    for encoder in "ab":
        assert [step for _, step, _ in toy.steps(f"cache@{encoder}")] == list(range(10))  # every step once
    assert toy.lock() == plain(tmp_path, "cache")
