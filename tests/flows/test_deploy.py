"""``prefect.yaml`` and the files of ``deploy/``: in order as they are, and refused when they are not."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from flows import deploy
from flows.deploy import DeploymentError, automations, check_parameters, read_prefect_yaml
from flows.environment import ROOT

Change = Callable[[dict[str, Any]], object]


def test_the_deployments_are_those_promised() -> None:
    read = {deployment.name: deployment for deployment in read_prefect_yaml(ROOT / "prefect.yaml").deployments}
    assert list(read) == ["on-demand", "scheduled-full-rerun", "scheduled-evaluation"]
    assert all(deployment.concurrency_limit.limit == 1 for deployment in read.values())
    assert read["scheduled-full-rerun"].schedules[0].timezone
    assert read["scheduled-evaluation"].parameters["targets"] == ["evaluate", "report"]


def _set(path: str, value: object) -> Change:
    def change(values: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        at: Any = values
        for part in parents:
            at = at[int(part)] if part.isdigit() else at[part]
        at[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_set("deploymints", []), "deploymints"),
        (_set("deployments.0.concurency_limit", {"limit": 1}), "concurency_limit"),
        (_set("deployments.0.concurrency_limit", 1), "concurrency_limit"),
        (_set("deployments.0.concurrency_limit", None), "concurrency_limit"),
        (_set("deployments.0.concurrency_limit", {"limit": 0, "collision_strategy": "ENQUEUE"}), "limit"),
        (_set("deployments.0.concurrency_limit", {"limit": 1, "collision_strategy": "WAIT"}), "ENQUEUE"),
        (_set("deployments.0.parameters", {"tragets": []}), "tragets is no parameter of the flow"),
        (_set("deployments.0.parameters", {"parallel": "two"}), "parallel"),
        (_set("deployments.0.parameters", {"parallel": 0}), "parallel"),
        (_set("deployments.0.entrypoint", "flows.pipeline.pipelin"), "entrypoint"),
        (_set("deployments.1.schedules.0.cron", "61 * * * *"), "cron"),
        (_set("deployments.1.schedules.0.timezone", "Europe/Berln"), "time zone"),
        (_set("deployments.1.schedules.0.parameters", {"pusch": True}), "pusch"),
        (_set("deployments.1.schedules.0.activ", True), "activ"),
        (_set("deployments.1.work_pool.name", "other"), "more than one work pool"),
        (_set("deployments.1.name", "on-demand"), "the same name"),
        (_set("deployments", []), "deployments"),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, change: Change, told: str) -> None:
    # anchors are resolved and copied, so that a change touches one place only
    values = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    values["deployments"] = [yaml.safe_load(yaml.safe_dump(entry)) for entry in values["deployments"]]
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump(values))
    read_prefect_yaml(file)
    change(values)
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(DeploymentError, match=told):
        read_prefect_yaml(file)


def test_parameters_are_those_of_the_flow() -> None:
    check_parameters({"targets": ["distill"], "settings": ["seed=1"], "push": True, "gpu": None, "grace": 5.0})


def test_lost_runs_are_noticed_and_started_over() -> None:
    lost, over = automations()
    assert lost.trigger.within.total_seconds() == 90  # type: ignore[union-attr]
    assert "prefect.flow-run.AwaitingRetry" in lost.trigger.expect  # type: ignore[union-attr]
    assert over.trigger.after == {"prefect.flow-run.Running"}  # type: ignore[union-attr]


def test_the_slurm_script_is_a_script_that_saves_and_requeues() -> None:
    script = ROOT / "deploy" / "worker.slurm"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(directives)
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    last_directive = max(n for n, line in enumerate(lines) if line.startswith("#SBATCH "))
    assert last_directive < first_command  # SLURM ignores directives after the first command


@pytest.mark.parametrize("early", [False, True])
def test_the_slurm_script_passes_the_signal_on_and_requeues(tmp_path: Path, early: bool) -> None:
    """The script itself, with stand-ins for the worker and for scontrol, which only a cluster has.

    ``early``: the worker itself asks for the signal as its first act, before the script need have noted its number.
    """
    worker = tmp_path / "python"
    worker.write_text(
        "#!/bin/bash\ntrap 'echo left >> $SLURM_SUBMIT_DIR/told; exit 0' TERM\n"
        f"echo started >> $SLURM_SUBMIT_DIR/told\n{'kill -USR1 $PPID' if early else ''}\n"
        "for i in {1..100}; do sleep 0.1; done\n"
    )
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\necho "$@" >> $SLURM_SUBMIT_DIR/told\n')
    for file in (worker, scontrol):
        file.chmod(0o755)
    batch = subprocess.Popen(
        ["bash", str(ROOT / "deploy" / "worker.slurm")],
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "17",
            "CLPDD_PYTHON": str(worker),
            "PREFECT_API_URL": "http://127.0.0.1:1/api",
        },
    )
    told = tmp_path / "told"
    while not told.exists():
        assert batch.poll() is None or told.exists()
    if not early:
        batch.send_signal(signal.SIGUSR1)
    assert batch.wait(20) == 0
    assert told.read_text().splitlines() == ["started", "left", "requeue 17"]


def test_the_kubernetes_manifests_fit_together() -> None:
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))
    kinds = {document["kind"]: document for document in documents}
    assert {kind: document["apiVersion"] for kind, document in kinds.items()} == {
        "ConfigMap": "v1",
        "PersistentVolumeClaim": "v1",
        "Deployment": "apps/v1",
    }
    assert all(isinstance(value, str) for value in kinds["ConfigMap"]["data"].values())
    spec = kinds["Deployment"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][:3] == ["python", "-m", "flows.worker"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [kinds["PersistentVolumeClaim"]["metadata"]["name"]]
    assert container["envFrom"][0]["configMapRef"]["name"] == kinds["ConfigMap"]["metadata"]["name"]
    assert all(isinstance(entry["value"], str) for entry in container["env"])
    from flows.worker import GRACE

    assert pod["terminationGracePeriodSeconds"] > GRACE


def test_schedules_are_paused_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read_deployment_by_name(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(id=name, schedules=[SimpleNamespace(id="first"), SimpleNamespace(id="second")])

        def update_deployment_schedule(self, deployment: str, schedule: str, active: bool) -> None:
            asked.append((deployment, schedule, active))

    monkeypatch.setattr(deploy, "get_client", lambda sync_client: Client())
    deploy._pause(["clpdd/a", "clpdd/b"])
    assert asked == [(name, schedule, False) for name in ("clpdd/a", "clpdd/b") for schedule in ("first", "second")]
