"""``python -m flows.deploy``: check ``prefect.yaml`` strictly and create all it needs on the Prefect server.

Creates or updates the work pool, the deployments, the GPU concurrency limit and two automations: one marks runs
whose heartbeats stopped as crashed, the other starts crashed runs over. Running it again changes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import os
import subprocess
import sys
import zoneinfo
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import yaml
from prefect.automations import Automation, AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists, PrefectException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from clpdd.cli.arguments import whole_number
from flows.environment import ROOT
from flows.limits import ensure_limit
from flows.pipeline import FLOW, pipeline

__all__ = ["DeploymentError", "automations", "deploy", "read_prefect_yaml"]

GPU_LIMIT = "clpdd-gpu"
MISSED = datetime.timedelta(seconds=90)
"""Silence after which a run counts as lost: three heartbeats."""
LONGEST = datetime.timedelta(days=60)
"""How long after its start a run may crash and still be started over."""


class DeploymentError(Exception):
    """``prefect.yaml`` or the server cannot be used; the message says what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Schedule(_Strict):
    """One schedule."""

    slug: str
    cron: str
    timezone: str
    active: bool = True
    parameters: dict[str, Any] = {}

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        return CronSchedule(cron=value).cron

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        if value not in zoneinfo.available_timezones():
            raise ValueError(f"{value} is no time zone of the IANA database (e.g. Europe/Berlin)")
        return value


class Concurrency(_Strict):
    """How many runs of a deployment at once, and what happens to one too many."""

    limit: Annotated[int, Field(ge=1)]
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"]
    grace_period_seconds: Annotated[int, Field(ge=60, le=86400)] = 300


class Pool(_Strict):
    """Where runs go."""

    name: str
    work_queue_name: str = "default"
    job_variables: dict[str, Any] = {}


class Deployment(_Strict):
    """One deployment."""

    name: str
    description: str = ""
    entrypoint: str
    tags: list[str] = []
    parameters: dict[str, Any] = {}
    schedules: list[Schedule] = []
    concurrency_limit: Concurrency
    work_pool: Pool

    @field_validator("entrypoint")
    @classmethod
    def _ours(cls, value: str) -> str:
        if value not in ("flows.pipeline.pipeline", "flows.scale.pipeline_on_dask"):
            raise ValueError(f"{value} is no flow of this package (flows.pipeline.pipeline)")
        return value

    @field_validator("parameters")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        check_parameters(value)
        return value


class PrefectFile(BaseModel):
    """What ``prefect.yaml`` may hold."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    name: str
    version: str = Field(alias="prefect-version")
    definitions: dict[str, Any] = {}
    pull: list[dict[str, Any]] = []
    deployments: Annotated[list[Deployment], Field(min_length=1)]


def check_parameters(values: Mapping[str, Any]) -> None:
    """Refuse parameters that the flow does not take, or not with such a value. Raises ``ValueError``."""
    known = inspect.signature(pipeline.fn, eval_str=True).parameters
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name} is no parameter of the flow; known: {', '.join(known)}")
        try:
            TypeAdapter(known[name].annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise ValueError(f"{name}: {error.errors()[0]['msg']} (got {value!r})") from None


def read_prefect_yaml(path: Path) -> PrefectFile:
    """Read and check the file. Raises ``DeploymentError`` naming every problem by its place."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DeploymentError(f"{path} cannot be read: {error}") from error
    try:
        read = PrefectFile.model_validate(values)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise DeploymentError(f"{path} cannot be used:\n" + "\n".join(lines)) from None
    pools = {deployment.work_pool.name for deployment in read.deployments}
    names = [deployment.name for deployment in read.deployments]
    if len(pools) > 1:
        raise DeploymentError(f"{path} names more than one work pool ({', '.join(sorted(pools))}): name it once")
    if len(set(names)) < len(names):
        raise DeploymentError(f"{path} gives two deployments the same name")
    for deployment in read.deployments:
        for schedule in deployment.schedules:
            try:
                check_parameters(schedule.parameters)
            except ValueError as error:
                raise DeploymentError(f"{path}: schedule {schedule.slug} of {deployment.name}: {error}") from None
    return read


def automations(missed: datetime.timedelta = MISSED) -> list[AutomationCore]:
    """The two automations: silence makes a run ``Crashed``, and a crashed run is started over."""
    run = ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]})
    ours = ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": [FLOW]})
    beat = "prefect.flow-run.heartbeat"
    ends = ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling", "Paused", "Suspended", "Scheduled")
    signs = {beat, "prefect.flow-run.AwaitingRetry", *(f"prefect.flow-run.{end}" for end in ends)}
    return [
        AutomationCore(
            name=f"{FLOW}: lost runs",
            description="A run whose heartbeats stopped lost its process: it is marked as crashed.",
            trigger=EventTrigger(
                after={beat},
                expect=signs,
                match=run,
                match_related=ours,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=missed,
            ),
            actions=[
                ChangeFlowRunState(state=StateType.CRASHED, message="No heartbeat: the process of this run is lost")
            ],
        ),
        AutomationCore(
            name=f"{FLOW}: start crashed runs over",
            description="A run that was under way and crashed is put back on the schedule; its stages resume.",
            trigger=EventTrigger(
                after={"prefect.flow-run.Running"},  # one that never ran would only crash again
                expect={"prefect.flow-run.Crashed"},
                match=run,
                match_related=ours,
                for_each={"prefect.resource.id"},
                posture=Posture.Reactive,
                threshold=1,
                within=LONGEST,
            ),
            actions=[
                ChangeFlowRunState(
                    name="AwaitingRetry",
                    state=StateType.SCHEDULED,
                    message="The process of this run was lost: started over",
                    force=True,
                )
            ],
        ),
    ]


def _create_automation(wanted: AutomationCore) -> None:
    with get_client(sync_client=True) as client:
        for existing in client.read_automations_by_name(wanted.name):
            client.delete_automation(existing.id)
    Automation.model_validate(wanted.model_dump()).create()


def _create_pool(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:
            existing = client.read_work_pool(name)
            if existing.type != "process":
                raise DeploymentError(
                    f"the work pool {name} exists already with type {existing.type}: rename ours in prefect.yaml"
                ) from None


def deploy(
    root: Path = ROOT,
    gpus: int = 1,
    missed: datetime.timedelta = MISSED,
    file: str = "prefect.yaml",
    paused: bool = False,
) -> list[str]:
    """Create everything on the server that ``PREFECT_API_URL`` names. Returns the deployments' full names.

    Args:
        root: the project's folder on the machines where workers run.
        gpus: slots of the concurrency limit ``clpdd-gpu``.
        missed: silence after which a run counts as lost.
        file: the deployment file, below ``root``.
        paused: whether the schedules are paused, whatever the file says.
    """
    read = read_prefect_yaml(root / file)
    pool = read.deployments[0].work_pool.name
    try:
        _create_pool(pool)
        ensure_limit(GPU_LIMIT, gpus)
        with get_client(sync_client=True) as client:
            client.update_global_concurrency_limit(GPU_LIMIT, GlobalConcurrencyLimitUpdate(limit=gpus))
        for automation in automations(missed):
            _create_automation(automation)
    except httpx.TransportError as error:
        url = os.environ.get("PREFECT_API_URL")
        raise DeploymentError(
            f"no Prefect server answers at {url} ({error}): start it, or correct the address"
        ) from error
    except (PrefectException, OSError) as error:
        raise DeploymentError(f"the Prefect server refused: {error}") from error
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file]
    environment = os.environ | {"CLPDD_HOME": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeploymentError(f"prefect deploy failed:\n{done.stdout}{done.stderr}")
    names = [f"{FLOW}/{deployment.name}" for deployment in read.deployments]
    if paused:
        _pause(names)
    return names


def _pause(names: Sequence[str]) -> None:
    """Pause every schedule of the deployments, which also takes back the runs that were scheduled."""
    with get_client(sync_client=True) as client:
        for name in names:
            deployment = client.read_deployment_by_name(name)
            for schedule in deployment.schedules:
                client.update_deployment_schedule(deployment.id, schedule.id, active=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 after saying what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--gpus", type=whole_number(1), default=1, help=f"slots of the concurrency limit {GPU_LIMIT} (default: 1)"
    )
    parser.add_argument(
        "--missed", type=float, default=MISSED.total_seconds(), help="seconds of silence of a lost run (default: 90)"
    )
    parser.add_argument("--file", default="prefect.yaml", help="deployment file (default: prefect.yaml)")
    parser.add_argument("--paused", action="store_true", help="pause the schedules, whatever the file says")
    parser.add_argument("--check", action="store_true", help="only check prefect.yaml")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            read_prefect_yaml(ROOT / options.file)
            print(f"{options.file} is in order")
            return 0
        if not os.environ.get("PREFECT_API_URL"):
            raise DeploymentError("PREFECT_API_URL is not set: say which server, e.g. http://127.0.0.1:4200/api")
        missed = datetime.timedelta(seconds=options.missed)
        names = deploy(ROOT, options.gpus, missed, options.file, options.paused)
        for name in names:
            print(name)
        print(f"\nWorker, in this folder:  python -m flows.worker\nA run:  prefect deployment run {names[0]}")
    except DeploymentError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
