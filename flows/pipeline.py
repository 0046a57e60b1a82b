"""The flow: one Prefect task per DVC stage item, independent ones side by side.

``dvc.yaml`` is the only description of the stages; this file asks DVC for them and for what is up to date, and
decides only the order, the number at once, and what to do after a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import queue
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from prefect import Flow, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run as this_run
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from clpdd.cli.arguments import whole_number
from clpdd.errors import SettingsError
from clpdd.storage.layout import Layout
from flows import dvc_commands as dvc
from flows import processes
from flows.artifacts import StageProgress, publish_artifacts
from flows.limits import Log, ensure_limit, slot_of
from flows.overrides import apply_overrides

__all__ = ["pipeline", "push_outputs", "run_stage"]

FLOW = "clpdd"
GPU_STAGES = ["cache", "distill", "evaluate"]
RESTARTS = 50
"""Times a run may be started over after its process was lost, before it is given up."""

Limit = Annotated[int, Field(ge=1, le=64)]
Names = list[str]


def _worth_another_try(task_: Any, run: Any, state: State[Any]) -> bool:
    """Prefect's retry condition: only what may end differently, and never while the run is being stopped."""
    return isinstance(state.data, (dvc.StageInterrupted, dvc.StageStarved)) and not processes.stopping()


def _work(root: Path, stage: dvc.Stage, alone: bool, say: Log, grace: float, force: bool) -> None:
    """Make a stage and have DVC record it; while someone else's run of the same stage holds its work, wait."""
    progress = StageProgress(stage.name)

    def line(text: str) -> None:
        say.info("%s", text)
        progress.line(text)

    delay = 2.0
    while True:
        try:
            if alone:
                dvc.record(root, stage.name, line, grace, force)
            else:
                dvc.make(root, stage, line, functools.partial(say.debug, "%s"), grace, force)
            progress.done()
            return
        except dvc.StageBusy:
            if processes.stopping():
                raise
            say.info("waiting %.0f s for the process that is running this stage already", delay)
            time.sleep(delay)
            delay = min(2 * delay, 30.0)


@task(
    task_run_name="{stage.name}",
    retries=5,
    retry_delay_seconds=[5, 15, 60, 60, 60],
    retry_condition_fn=_worth_another_try,
    cache_policy=NO_CACHE,  # DVC is the memory
    persist_result=False,
)
def run_stage(
    root: Path, stage: dvc.Stage, dirty: bool, alone: bool, force: bool, gpu: str | None, grace: float
) -> State[str]:
    """Bring one stage item up to date. Ends ``Cached`` when DVC had nothing to do.

    A stage that may have siblings does its work before DVC records it; one that is ``alone`` needs no such detour.
    """
    say = get_run_logger()
    if stage.looks:
        if dvc.look(root, stage, functools.partial(say.info, "%s"), grace):
            return Completed(data="made")
        return Completed(name="Cached", message="nothing has changed", data="unchanged")
    found = dvc.Probe.OUTDATED if force else dvc.Probe.UNCHANGED if not dirty else dvc.probe(root, stage.name)
    if found is dvc.Probe.OUTDATED:
        with slot_of(gpu, say):
            _work(root, stage, alone, say, grace, force)
        return Completed(data="made")
    if found is dvc.Probe.RESTORABLE:
        dvc.record(root, stage.name, functools.partial(say.debug, "%s"), grace)
        return Completed(name="Cached", message="restored from the DVC cache", data="restored")
    return Completed(name="Cached", message="up to date", data="unchanged")


@task(task_run_name="push", retries=3, retry_delay_seconds=[10, 60, 120], cache_policy=NO_CACHE, persist_result=False)
def push_outputs(root: Path) -> None:
    """``dvc push``."""
    say = get_run_logger()
    dvc.push(root, lambda text: say.info("%s", text))


@flow(
    name=FLOW,
    description="Dataset distillation, end to end, as described by dvc.yaml.",
    task_runner=cast(Any, ThreadPoolTaskRunner(max_workers=64)),  # the limit is `parallel`
    persist_result=False,
    validate_parameters=True,
)
def pipeline(
    targets: Names = [],  # noqa: B006  (Prefect shows the default in its form; it is never changed)
    settings: Names = [],  # noqa: B006  (likewise)
    parallel: Limit = 2,
    push: bool = False,
    upstream: bool = True,
    force: bool = False,
    gpu: str | None = None,
    gpu_stages: Names = GPU_STAGES,
    grace: Annotated[float, Field(gt=0)] = 20.0,
    folder: str = ".",
) -> State[Any]:
    """Bring stages up to date with their settings and inputs, and show the results as artifacts.

    Args:
        targets: stages (``distill``) or items (``distill@resnet18-clp``); none means all.
        settings: overrides ``section.key=value``, written into params.yaml as ``dvc exp run -S`` does.
        parallel: how many stages may run at once.
        push: whether to push the outputs to the DVC remote afterwards.
        upstream: whether to bring what the targets need up to date too.
        force: make the targets, and with ``upstream`` what they need, anew: what was finished or begun is dropped.
        gpu: name of the Prefect concurrency limit of which a stage takes one slot; none takes none.
        gpu_stages: the stages (names in dvc.yaml) that take one.
        grace: seconds a stopped stage has to save its state before it is killed.
        folder: the project's folder.
    """
    root = Path(folder).resolve()
    processes.allow_starts()
    if (attempt := this_run.get_run_count() or 1) > RESTARTS:
        return Failed(message=f"given up: the process of this run was lost {RESTARTS} times")
    try:
        _refuse(root, push)
        # one run at a time in a workspace: params.yaml and dvc.lock are one for all
        with processes.holding(root / ".dvc" / "tmp" / "flows-run.lock", _waiting, poll=1.0):
            stages = _prepare(root, targets, settings, upstream, force and attempt == 1)
            return _bring_up_to_date(root, stages, parallel, force, (gpu, gpu_stages), grace, push)
    except (dvc.ProjectError, SettingsError) as error:
        return Failed(message=str(error))  # a mistake of the user's: the message without a traceback


def _refuse(root: Path, push: bool) -> None:
    if not (root / "dvc.yaml").is_file():
        raise dvc.ProjectError(f"{root} holds no dvc.yaml: run in the project's folder, or give `folder`")
    if push and not dvc.has_remote(root):
        raise dvc.ProjectError("push is asked for, but DVC has no default remote: dvc remote add --default NAME URL")


def _waiting(holder: str) -> None:
    get_run_logger().info("waiting for the run that has this workspace now (%s)", holder)


def _prepare(root: Path, targets: Names, settings: Names, upstream: bool, anew: bool) -> dict[str, dvc.Stage]:
    """Write the overrides; return the stages wanted."""
    say = get_run_logger()
    if apply_overrides(root, settings):
        say.info("params.yaml now has %s", ", ".join(settings))
    stages = dvc.select(dvc.read_stages(root), targets, upstream)
    if anew:  # a run that was lost and started over keeps what it has done since
        dvc.forget(Layout(root / "data").work, stages.values())
    return stages


def _bring_up_to_date(
    root: Path,
    stages: dict[str, dvc.Stage],
    parallel: int,
    force: bool,
    gpu: tuple[str | None, Sequence[str]],
    grace: float,
    push: bool,
) -> State[Any]:
    rest = {name: stage for name, stage in stages.items() if not stage.looks}
    first = {name: stage for name, stage in stages.items() if stage.looks}
    try:
        # they see what DVC does not: only afterwards DVC can tell what is up to date
        ends = _conduct(root, first, set(first), parallel, force, (None, ()), grace)
        if all(state.is_completed() for state in ends.values()):
            dirty = dvc.changed(root, stages)
            get_run_logger().info("%d of %d stages are up to date", len(rest) - len(dirty), len(rest))
            ends |= _conduct(root, rest, dirty, parallel, force, gpu, grace)
    except BaseException:
        processes.stop_all()  # tasks run in threads, which no signal reaches
        raise
    problems = {name: state.message or "" for name, state in ends.items() if not state.is_completed()}
    if problems:
        left = [name for name in stages if name not in ends]
        tail = f"\nnot started: {', '.join(left)}" if left else ""
        return Failed(message="\n".join(f"{name}: {text}" for name, text in problems.items()) + tail)
    publish_artifacts(root)
    if push:
        push_outputs(root)
    made = sum(state.name != "Cached" for state in ends.values())
    return Completed(message=f"{made} stages made, {len(ends) - made} up to date")


def _conduct(
    root: Path,
    stages: dict[str, dvc.Stage],
    dirty: set[str],
    parallel: int,
    force: bool,
    gpu: tuple[str | None, Sequence[str]],
    grace: float,
) -> dict[str, State[Any]]:
    """Start each stage when those it needs have succeeded, ``parallel`` at most at once. Returns how each ended.

    A failure stops nothing that does not need it; what does need it is not started.
    """
    waiting = dict(stages)
    running: set[str] = set()
    ends: dict[str, State[Any]] = {}
    futures: dict[str, PrefectFuture[Any]] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    limit, limited = gpu
    if limit is not None:
        ensure_limit(limit)
    while True:
        needs = {name: [need for need in stage.upstream if need in stages] for name, stage in waiting.items()}
        ready = [name for name in waiting if all(need in ends and ends[need].is_completed() for need in needs[name])]
        # alone: nothing runs, and nothing becomes ready before it has ended
        alone = not running and (len(ready) == 1 or parallel == 1)
        for name in ready[: parallel - len(running)]:
            stage = waiting.pop(name)
            slot = limit if stage.group in limited else None
            upstream = [futures[need] for need in needs[name]]
            future = cast(Any, run_stage).submit(
                root, stage, name in dirty, alone, force, slot, grace, wait_for=upstream
            )
            running.add(name)
            futures[name] = future
            future.add_done_callback(functools.partial(_tell, ended, name))
        if not running:
            return ends
        with contextlib.suppress(queue.Empty):
            name = ended.get(timeout=1.0)  # a timeout, so that signals are noticed
            running.remove(name)
            ends[name] = _end(futures[name])


def _tell(ended: queue.SimpleQueue[str], name: str, future: object) -> None:
    ended.put(name)


def _end(future: PrefectFuture[Any]) -> State[Any]:
    """The final state of a task that has ended; one that died without a word counts as failed."""
    future.wait()
    state = future.state
    return state if state.is_final() else Failed(message="the process that ran it was lost")


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def main(arguments: Sequence[str] | None = None, run: Flow[..., Any] = pipeline) -> int:
    """``python -m flows.pipeline``: the flow without a server. Returns 0 or 1."""
    parser = argparse.ArgumentParser(description="Run the pipeline under Prefect, without a server.")
    parser.add_argument("targets", nargs="*", help="stages or stage items (default: all)")
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("-j", "--parallel", type=whole_number(1, 64), default=2, help="stages at once (default: 2)")
    parser.add_argument("--push", action="store_true", help="dvc push afterwards")
    parser.add_argument("-s", "--single-item", action="store_true", help="only the targets, not what they need")
    parser.add_argument("-f", "--force", action="store_true", help="make the targets anew")
    parser.add_argument("--gpu", metavar="LIMIT", help="Prefect concurrency limit that GPU stages take a slot of")
    parser.add_argument("--grace", type=_seconds, default=20.0, help="seconds to save in when stopped (default: 20)")
    parser.add_argument("--folder", default=".", help="the project's folder (default: here)")
    options = vars(parser.parse_args(arguments))
    state: State[Any] = cast(Any, run)(upstream=not options.pop("single_item"), **options, return_state=True)
    print(f"{state.name}: {state.message}" if state.message else state.name, file=sys.stderr)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
