"""The run: fair to both sides, resumable, honest about what it judges on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from clpdd.benchmark import judging
from clpdd.benchmark import run as runner
from clpdd.benchmark.plan import marks_by_clock
from clpdd.evaluation.inputs import open_bench
from clpdd.evaluation.worth import few_shot_curve
from clpdd.stages.evaluate import evaluation_data
from tests.conftest import World

from .conftest import QUICK, Race, borrowed, race, settings

ROOT = Path(__file__).parent.parent.parent


def test_the_table_holds_every_point_under_every_protocol(raced: Race) -> None:
    rows = raced.rows
    kinds = {(r["protocol"], r["views"]) for r in rows if r["name"] == "clp-no-dsa"}
    assert kinds == {("sgd", "bank-2"), ("closed_form", "clean"), ("closed_form", "bank-2")}
    sgd = [r for r in rows if (r["name"], r["protocol"]) == ("clp-no-dsa", "sgd")]
    assert [(r["step"], r["probe_seed"]) for r in sgd] == [(s, p) for s in (0, 2, 4) for p in (0, 1)]
    assert [(r["forward"], r["backward"]) for r in sgd[::2]] == [(10 * s, 10 * s) for s in (0, 2, 4)]
    assert [r["last"] for r in sgd[::2]] == [False, False, True]
    assert json.loads(sgd[0]["changed"])["augmentations"] == 1
    assert json.loads(sgd[0]["versions"])["torch"] == torch.__version__.split("+")[0]
    assert {r["judge"] for r in rows} == {"test"}
    assert all(r["setup_seconds"] > 0 for r in rows if r["step"] is not None)
    assert all(r["selection_seconds"] > 0 for r in rows if r["step"] is None)
    assert {r["skipped"] for r in rows} == {"[]"}
    assert {r["step"] for r in rows if r["name"] == "full"} == {None}
    assert {r["protocol"] for r in rows if r["name"] == "full"} == {"closed_form", "logistic"}
    assert all(0 <= r["top1"] <= r["top5"] <= 100 for r in rows)
    assert all(0 <= r["mean_per_class"] <= 100 for r in rows)
    # a process of its own: more than its libraries, and no more than a small distillation needs
    assert all(100 < r["idle_memory_mb"] <= r["peak_memory_mb"] for r in rows)


def test_a_peer_is_judged_at_its_references_time_and_has_its_multiple(raced: Race) -> None:
    own = [r for r in raced.rows if r["protocol"] == "sgd" and r["probe_seed"] == 0]
    (end,) = (r["seconds"] for r in own if r["name"] == "clp-no-dsa" and r["last"])
    peer = sorted((r["step"], r["seconds"], r["last"]) for r in own if r["name"] == "lgm-no-dsa")
    marks = marks_by_clock(end, 10.0, 1)
    for mark in marks:  # the first step at or after each mark is there
        step, seconds, _ = next(p for p in peer if p[1] >= mark)
        before = [p for p in peer if p[0] == step - 1]
        assert all(p[1] < mark for p in before)
        assert seconds >= mark
    assert peer[-1][1] >= 10 * end
    assert [last for _, _, last in peer].count(True) == 1
    assert {r["reference"] for r in own if r["name"] == "lgm-no-dsa"} == {"clp-no-dsa"}


def test_what_is_done_is_not_done_again(world: World, raced: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any) -> Any:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_apart", unwanted)
        patch.setattr(judging, "run_protocol", unwanted)
        patch.setattr(judging, "few_shot_curve", unwanted)
        assert race(world, raced.layout, raced.jobs, settings()) == raced.rows
        other = replace(raced.jobs[0], seed=7)
        with pytest.raises(AssertionError, match="made again"):
            race(world, raced.layout, [other], settings())


def test_protocols_across_encoders_are_said_to_be_left_out(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout, chosen = borrowed(world, tmp_path, "train", "validation", "test"), settings()
    asked = chosen.evaluate.model_copy(update={"protocols": ["closed_form", "inherit", "kd"]})
    race(world, layout, [], chosen.model_copy(update={"evaluate": asked}))
    assert "evaluate.protocols names inherit and kd" in caplog.text
    assert "benchmark.transfer_to names none" in caplog.text


def test_another_encoder_judges_the_ends_and_what_bounds_them(world: World, abroad: Race) -> None:
    elsewhere = [r for r in abroad.rows if r["eval_encoder"] == "second"]
    own = [r for r in abroad.rows if r["eval_encoder"] == world.encoder.name]
    assert len(own) + len(elsewhere) == len(abroad.rows)
    assert {r["encoder"] for r in abroad.rows} == {world.encoder.name}
    assert all(r["last"] for r in elsewhere)
    assert {r["step"] for r in own if r["name"] == "clp-no-dsa"} == {0, 2, 4}
    kinds = {(r["name"], r["protocol"]) for r in elsewhere}
    bounds = {("full", "closed_form"), ("full", "logistic")}
    assert kinds == {("clp-no-dsa", "closed_form"), ("clp-no-dsa", "inherit")} | bounds
    assert {r["protocol"] for r in own if r["name"] == "clp-no-dsa"} == {"closed_form"}
    assert {r["skipped"] for r in abroad.rows} == {"[]"}
    # other features: other scores
    clean = {r["eval_encoder"]: r["top1"] for r in abroad.rows if (r["name"], r["views"]) == ("full", "clean")}
    assert len(set(clean.values())) == 2


def test_few_shot_curves_of_the_distilling_encoder_stand_in_the_table(world: World, raced: Race) -> None:
    (told,) = {r["few_shot"] for r in raced.rows}
    name = world.encoder.name
    bench = open_bench(name, evaluation_data(raced.layout, name, world.encoder))
    again = few_shot_curve(bench, settings().evaluate.ridge, settings().seed)
    assert json.loads(told) == {k: [[count, round(top1, 6)] for count, top1 in own] for k, own in again.items()}
    assert [count for count, _ in json.loads(told)["random"]] == [1, 2, 5, 10]  # of twelve


def test_no_few_shot_curve_without_the_probe_that_it_is_measured_by(
    world: World, raced: Race, varied: list[dict[str, Any]]
) -> None:
    assert {r["few_shot"] for r in varied} == {None}  # an ablation: no test images
    chosen = settings()
    asked = chosen.evaluate.model_copy(update={"protocols": ["sgd"]})
    only = [job for job in raced.jobs if job.method == "full"]
    rows = race(world, raced.layout, only, chosen.model_copy(update={"evaluate": asked}))
    assert {r["few_shot"] for r in rows} == {None}


def test_the_accuracies_of_a_probe_all_reach_the_table(
    world: World, raced: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {"top1": 70.0, "top5": 90.0, "mean_per_class": 60.0, "worst_group": 40.0}

    def grouped(*_: Any) -> dict[str, Any]:
        return {"rows": [{"draw": 0, "seed": 0} | scores]}

    monkeypatch.setattr(judging, "run_protocol", grouped)
    chosen = settings()
    other = chosen.model_copy(update={"evaluate": chosen.evaluate.model_copy(update={"ridge": 7.0})})  # judged anew
    rows = race(world, raced.layout, [job for job in raced.jobs if job.method == "full"], other)
    assert [{name: row[name] for name in scores} for row in rows] == [scores] * len(rows)


def test_ablations_are_judged_on_validation_where_no_test_split_exists(varied: list[dict[str, Any]]) -> None:
    assert {r["judge"] for r in varied} == {"validation"}
    assert {(r["group"], r["choice"]) for r in varied} == {("decorrelation", "decorrelated colours")}
    assert all(r["last"] and r["step"] == 2 for r in varied)


def test_a_killed_comparison_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    borrowed(world, tmp_path / "data", "train", "validation", "test")
    own = QUICK | {
        "distill": {"outer_batch": 32},
        "runtime": {"checkpoint_every_steps": 10},
        "benchmark": {"methods": ["clp-no-dsa"], "steps": 150, "halvings": 0, "seeds": 1, "views": 2},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(own))
    command = [sys.executable, "-m", "clpdd", "--params", str(tmp_path / "params.yaml")]
    command += ["--data", str(tmp_path / "data"), "benchmark"]
    rooms = tmp_path / "data" / "work" / "benchmark"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def checkpoints() -> int:
        found = [int(p.stem.split("-")[1]) for p in rooms.glob("*clp*/*/work/distill/*/*/checkpoints/step-*.json")]
        return max(found, default=0)

    def wait_beyond(step: int) -> int:
        deadline = time.monotonic() + 240  # of a step, on a busy machine
        while checkpoints() <= step:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return checkpoints()

    with start() as process:
        wait_beyond(0)
        orphans = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    psutil.wait_procs(orphans, timeout=60)  # left alone, the distillation saves and ends: what comes is the next one's
    reached = checkpoints()
    with start() as process:
        wait_beyond(reached + 10)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 75, said
        assert "Traceback" not in said
    assert int(re.findall(r"continuing at step (\d+)", said)[0]) >= reached
    with start() as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 0, said
    assert "continuing at step" in said
    rows = pq.read_table(tmp_path / "data" / "benchmark" / world.encoder.name / "benchmark.parquet").to_pylist()
    assert {(r["name"], r["step"]) for r in rows} == {("clp-no-dsa", 0), ("clp-no-dsa", 150)}
    assert f"--data {tmp_path / 'data'} benchmark --encoder" in rows[0]["command"]
    assert (tmp_path / "data" / "benchmark" / world.encoder.name / "comparison.html").is_file()
