"""The pipeline as its users run it: a real `dvc repro` in a fresh copy of the project."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from clpdd.catalogue.datasets import CATALOGUE
from clpdd.catalogue.methods import METHODS
from clpdd.catalogue.protocols import PROTOCOLS
from clpdd.datasets.sources.loading import module_of as reader_module
from clpdd.evaluation.running import module_of as protocol_module
from clpdd.methods.loading import module_of as method_module
from clpdd.storage.provenance import code_files

from .clones import ROOT, copy_project, run, stages_run

SMALL = {
    "dataset.max_per_class.train": 20,
    "distill.steps": 30,
    "distill.validate_every": 10,
    "distill.preview_every": 10,
    "evaluate.seeds": 2,
    "evaluate.views": 8,
    "evaluate.epochs": 100,
    "distill.random_draws": 2,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which `dvc repro` has run once."""
    folder = copy_project(tmp_path_factory.mktemp("clone"), SMALL)
    run(folder, "dvc", "repro")
    return folder


@pytest.mark.slow
def test_everything_promised_is_there(project: Path) -> None:
    data = project / "data"
    rows = pq.read_table(data / "results" / "results.parquet").to_pylist()
    assert {row["method"] for row in rows} == {"clp", "random", "centroid", "full"}
    assert {row["protocol"] for row in rows} == {"sgd", "closed_form", "logistic"}
    columns = {"dataset", "method", "distil_encoder", "eval_encoder", "protocol", "ipc", "seed", "top1", "top5"}
    columns |= {"worst_group", "fingerprint"}
    assert columns <= set(rows[0])
    timed = pq.read_table(data / "results" / "results-timed.parquet")
    assert columns | {"seconds", "peak_memory_mb"} <= set(timed.column_names)
    assert all(0 <= row["top1"] <= row["top5"] <= 100 for row in rows)
    assert "<html" in (data / "results" / "report.html").read_text()
    distilled = data / "distilled" / "clpdd_resnet14" / "clp"
    assert np.asarray(Image.open(distilled / "preview.png")).std() > 10
    with Image.open(distilled / "timelapse.gif") as film:
        assert getattr(film, "n_frames", 1) >= 2
    assert len(list((distilled / "images").glob("*/*.png"))) == 10


@pytest.mark.slow
def test_dvc_reads_the_metrics_and_draws_the_curves(project: Path) -> None:
    metrics = json.loads(run(project, "dvc", "metrics", "show", "--json").splitlines()[-1])
    text = json.dumps(metrics)
    assert "clp" in text
    assert "share_of_full" in text
    plots = run(project, "dvc", "plots", "show", "--json")
    assert "validation_top1" in plots
    assert '"errors"' not in plots


@pytest.mark.slow
def test_the_table_is_printed(project: Path) -> None:
    table = run(project, "clpdd", "results")
    assert re.search(r"sgd +8 augmented views +clp +\d+\.\d+ ± +\d+\.\d+ +\d+\.\d +", table)
    assert "report: file://" in table


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_the_tree_stays_clean(project: Path) -> None:
    output = run(project, "dvc", "repro")
    assert stages_run(output) == ["inputs"]  # which looks whether there is anything to do
    assert "inputs are up to date: timm" in output
    assert output.count("didn't change, skipping") == 9
    assert run(project, "git", "status", "--porcelain").split() == ["??", "dvc.lock"]


@pytest.mark.slow
def test_two_fresh_copies_end_in_the_same_lock_file_and_a_temperature_reruns_what_follows(
    project: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    run(tmp_path, "git", "clone", "-q", str(project), str(other))
    run(other, "dvc", "repro")
    assert (other / "dvc.lock").read_text() == (project / "dvc.lock").read_text()
    run(other, "git", "add", "-A")
    run(other, "git", "commit", "-q", "-m", "ran")
    output = run(other, "dvc", "exp", "run", "-S", "distill.temperature=0.5")
    ran = {stage.split("@")[0] for stage in stages_run(output)}
    assert ran == {"inputs", "distill", "evaluate", "report"}


def strings_imported(stage: str) -> list[str]:
    """Modules that a stage loads by their names in catalogues, and the class of an encoder that joins others."""
    methods = [method_module(name) for name in METHODS]
    return {
        "index": [reader_module(name) for name in CATALOGUE] + ["clpdd.datasets.sources.hub"],
        "cache": ["clpdd.encoders.joint"],
        "distill": ["clpdd.encoders.joint", *methods],
        "evaluate": ["clpdd.encoders.joint", *(protocol_module(name) for name in PROTOCOLS)],
        "benchmark": ["clpdd.encoders.joint", *methods, *(protocol_module(name) for name in PROTOCOLS)],
    }.get(stage, [])


def covered(entry: str) -> set[str]:
    """The Python files of the package that an entry of ``deps`` stands for, relative to the project."""
    path = ROOT / entry
    files = path.rglob("*.py") if path.is_dir() else [path]
    return {file.relative_to(ROOT).as_posix() for file in files}


def test_stages_list_the_code_that_decides_them_and_nothing_else() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    order = list(stages)
    assert order == ["inputs", "index", "cache", "kernels", "distill", "evaluate", "report", "benchmark"]
    for stage in order:
        module = "clpdd.benchmark.stage" if stage == "benchmark" else f"clpdd.stages.{stage}"
        needed = {f"clpdd/{name}" for name in code_files(module, *strings_imported(stage))}
        needed -= {name for name in needed if name.endswith("__init__.py")}  # they import nothing: a test says so
        listed = [dep for dep in stages[stage]["deps"] if dep.startswith("clpdd/")]
        missing = needed - {file for entry in listed for file in covered(entry)}
        assert not missing, stage
        for entry in listed:
            decides = entry.startswith(("clpdd/catalogue", "clpdd/weights")) or covered(entry) & needed
            assert decides or entry == "clpdd/config/variants.py", (stage, entry)
        weights = stage in ("cache", "distill", "evaluate", "benchmark")
        assert ("clpdd/weights" in listed) == weights  # they decide as much as the code does


def test_the_description_of_the_pipeline_stays_readable() -> None:
    text = (ROOT / "dvc.yaml").read_text()
    assert len(text.splitlines()) <= 250
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()  # else every run would change the folders


def test_no_tuning_stage_depends_on_the_test_split() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("kernels", "distill"):
        inputs = [dep for dep in stages[stage]["deps"] if dep.startswith("data/")]
        assert inputs
        names = {re.sub(r"\.(parquet|zarr|json)$", "", Path(dep).name) for dep in inputs}
        assert names <= {"train", "validation", "${item.encoder}"}, stage


@pytest.mark.parametrize(
    ("command", "setting", "hint"),
    [
        (["index"], "distill: {temprature: 1.0}", "did you mean temperature?"),
        (["cache", "--encoder", "clpdd_resnet14"], "distill: {temprature: 1.0}", "did you mean temperature?"),
        (["evaluate"], "distill: {temprature: 1.0}", "did you mean temperature?"),
        (["index"], "encoders: [resnet1O]", "near names: resnet1"),
    ],
)
def test_a_wrong_setting_stops_every_command_before_work(
    tmp_path: Path, command: list[str], setting: str, hint: str
) -> None:
    (tmp_path / "params.yaml").write_text(f"{setting}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "clpdd", *command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
