"""What evaluation writes: every row, and figures that add up."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
import yaml

from clpdd.evaluation.subject import ViewedProtocol
from clpdd.evaluation.tables import Result, details_json, metrics_json, plot_csv
from clpdd.features.store import FeatureStore
from clpdd.storage.files import canonical_json, read_json, sha256_bytes

from .conftest import SETTINGS, World, rows_of


def test_a_row_for_every_set_encoder_protocol_draw_and_seed(world: World, room: Path) -> None:
    rows = rows_of(room / "results")
    keys = [
        (r["distil_encoder"], r["method"], r["eval_encoder"], r["protocol"], r["views"], r["draw"], r["seed"])
        for r in rows
    ]
    expected = []
    for distil, method in world.distilled:
        for target in world.encoders:
            if method == "full":
                expected += [(distil, method, target, p, "clean", 0, 0) for p in ("closed_form", "logistic")]
                continue
            draws = range(3 if method == "random" else 1)
            kinds = (("sgd", "bank-4", 2), ("closed_form", "clean", 1), ("closed_form", "bank-4", 2))
            for protocol, views, seeds in kinds:
                expected += [(distil, method, target, protocol, views, d, s) for d in draws for s in range(seeds)]
    assert keys == expected
    assert {r["dataset"] for r in rows} == {"digits"}
    assert {(r["method"], r["ipc"]) for r in rows} == {("clp", 1), ("random", 1), ("full", None)}
    assert all(0 <= r["top1"] <= r["top5"] <= 100 and r["worst_group"] is None for r in rows)


def test_all_data_beat_one_image_per_class(room: Path) -> None:
    metrics = read_json(room / "results" / "metrics.json")
    full = metrics["one"]["full"]
    assert full["closed_form-clean"]["top1"] > metrics["one"]["random"]["closed_form-clean"]["top1"] > 12
    assert full["logistic-clean"]["top1"] > metrics["one"]["random"]["sgd-bank-4"]["top1"]


def test_metrics_are_means_and_spreads_of_the_rows(room: Path) -> None:
    metrics = read_json(room / "results" / "metrics.json")
    assert set(metrics) == {"one", "two", "one -> two", "two -> one"}
    chosen = [
        r["top1"]
        for r in rows_of(room / "results")
        if (r["method"], r["distil_encoder"], r["eval_encoder"], r["protocol"]) == ("random", "one", "two", "sgd")
    ]
    found = metrics["one -> two"]["random"]["sgd-bank-4"]
    bound = metrics["two"]["full"]["logistic-clean"]["top1"]
    assert len(chosen) == 6
    assert found["top1"] == round(fmean(chosen), 4)
    assert found["top1_std"] == round(stdev(chosen), 4)
    assert found["share_of_full"] == pytest.approx(100 * found["top1"] / bound, abs=1e-3)
    assert metrics["one"]["full"]["closed_form-clean"]["top1_std"] == 0
    lines = (room / "results" / "plots" / "accuracy.csv").read_text().splitlines()
    assert lines[0] == "result,encoders,method,protocol,top1,std"
    name = '"random, sgd-bank-4, one -> two"'
    assert f"{name},one -> two,random,sgd-bank-4,{found['top1']},{found['top1_std']}" in lines


def test_improvement_over_random_is_told_for_like_and_like_alone() -> None:
    def result(
        method: str, views: str, top1: float, counts: tuple[int, ...] | None = (1, 1), target: str = "one"
    ) -> Result:
        return Result(
            dataset="d",
            method=method,
            made_by={"random-5": "random"}.get(method, method),
            distil="one",
            target=target,
            protocol=ViewedProtocol("closed_form", views),
            counts=counts,
            fingerprint="f",
            record={},
            piece={"rows": [{"top1": top1, "top5": 99.0, "mean_per_class": top1}]},
        )

    results = [
        result("clp", "clean", 60.0),
        result("clp", "bank-4", 50.0),
        result("clp", "clean", 40.0, target="two"),  # random was not judged with this encoder
        result("more", "clean", 70.0, counts=(5, 5)),  # five images per class, and random has one
        result("uneven", "clean", 65.0, counts=(1, 2)),  # one on the average too, rounded down
        result("full", "clean", 90.0, counts=None),
        result("random", "clean", 35.0),
        result("random", "bank-4", 20.5),
        result("five", "bank-4", 71.0, counts=(5, 5)),
        result("random-5", "bank-4", 65.0, counts=(5, 5)),  # a variant of random
    ]
    assert [result.ipc for result in results] == [1, 1, 1, 5, 1, None, 1, 1, 5, 5]
    metrics = json.loads(metrics_json(results))
    assert metrics["one"]["clp"]["closed_form-clean"]["over_random"] == 25
    assert metrics["one"]["clp"]["closed_form-bank-4"]["over_random"] == 29.5
    assert metrics["one"]["five"]["closed_form-bank-4"]["over_random"] == 6
    alone = ("more", "uneven", "full", "random", "random-5")
    others = [metrics["one -> two"]["clp"], *(metrics["one"][name] for name in alone)]
    assert not any("over_random" in leaf for own in others for leaf in own.values())


def test_no_two_bars_of_the_plot_have_one_name_so_that_none_is_stacked_on_another(room: Path) -> None:
    for encoders, lines in ((("one", "two"), 24), (("one",), 3)):
        results = [
            Result(
                dataset="d",
                method=method,
                made_by=method,
                distil=distil,
                target=target,
                protocol=protocol,
                counts=(1,),
                fingerprint="f",
                record={},
                piece={"rows": [{"top1": 90.0}]},
            )
            for distil in encoders
            for target in encoders
            for method in (("clp", "random") if len(encoders) > 1 else ("clp",))
            for protocol in (
                ViewedProtocol("sgd", "bank-4"),
                ViewedProtocol("closed_form", "clean"),
                ViewedProtocol("closed_form", "bank-4"),
            )
        ]
        rows = list(csv.DictReader(io.StringIO(plot_csv(results).decode())))
        names = [row["result"] for row in rows]
        assert len(set(names)) == len(names) == lines
        assert max(float(row["top1"]) for row in rows) == 90
    assert names == ["clp, sgd-bank-4", "clp, closed_form-clean", "clp, closed_form-bank-4"]
    (plot,) = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]["evaluate"]["plots"]
    assert plot["data/results/plots/accuracy.csv"]["y"] == "result"  # the column by which bars are told apart


def test_a_fingerprint_leads_to_everything_it_stands_for(room: Path) -> None:
    known = read_json(room / "results" / "details.json")["fingerprints"]
    for row in rows_of(room / "results"):
        parts = known[row["fingerprint"]]
        assert sha256_bytes(canonical_json(parts).encode())[:16] == row["fingerprint"]
        assert {"settings", "inputs", "code", "versions"} <= set(parts)


def test_details_add_up(world: World, room: Path) -> None:
    details = read_json(room / "results" / "details.json")
    labels = FeatureStore.open(world.root / "one" / "test.zarr").labels
    assert details["test_images"] == labels.bincount(minlength=10).tolist()
    assert len(details["class_names"]) == 10
    rows = rows_of(room / "results")
    for entry in details["rows"]:
        own = [r for r in rows if all(r[key] == entry[key] for key in ("method", "distil_encoder", "eval_encoder"))]
        own = [r for r in own if (r["protocol"], r["views"]) == (entry["protocol"], entry["views"])]
        matrix = np.array(entry["confusion"])
        assert entry["probes"] == len(own)
        assert matrix.sum(1).tolist() == [entry["probes"] * n for n in details["test_images"]]
        assert entry["per_class"] == pytest.approx((100 * matrix.diagonal() / matrix.sum(1)).tolist())
        assert 100 * matrix.trace() / matrix.sum() == pytest.approx(fmean(r["top1"] for r in own))


def test_the_full_data_probe_is_the_one_of_the_kernel_stage_whoever_distilled(room: Path) -> None:
    full = [r for r in rows_of(room / "results") if r["method"] == "full"]
    by_distil = [
        [(r["eval_encoder"], r["top1"], r["fingerprint"]) for r in full if r["distil_encoder"] == distil]
        for distil in ("one", "two")
    ]
    assert by_distil[0] == by_distil[1]
    details = read_json(room / "results" / "details.json")
    notes = {(r["eval_encoder"], r["protocol"]): r["notes"] for r in details["rows"] if r["method"] == "full"}
    assert notes["one", "closed_form"]["ridge"] > 0
    assert notes["one", "logistic"]["l2"] > 0


def test_fresh_views_are_named_so_and_have_no_bank(world: World, tmp_path: Path) -> None:
    distilled = {key: world.distilled[key] for key in [("one", "clp")]}
    settings = SETTINGS.model_copy(update={"views": 0, "epochs": 3})
    results = world.evaluate(tmp_path, settings, distilled=distilled, encoders={"one": world.encoders["one"]})
    assert [(r["protocol"], r["views"], r["seed"]) for r in rows_of(results)] == [
        ("sgd", "fresh", 0),
        ("sgd", "fresh", 1),
        ("closed_form", "clean", 0),
    ]


def test_only_the_first_protocol_keeps_its_confusion_when_there_are_many_classes() -> None:
    classes = 201
    matrix = (3 * torch.eye(classes, dtype=torch.int64)).tolist()
    matrix[0] = [0] * classes  # a class without test images
    piece = {"rows": [{"draw": 0, "seed": 0, "top1": 100.0, "top5": 100.0}], "confusion": matrix, "notes": {}}
    results = [
        Result(
            dataset="d",
            method="clp",
            made_by="clp",
            distil="one",
            target=target,
            protocol=ViewedProtocol(protocol, "clean"),
            counts=(1,),
            fingerprint="f",
            record={},
            piece=piece,
        )
        for target in ("one", "two")
        for protocol in ("sgd", "closed_form")
    ]
    rows = json.loads(details_json(results, [str(c) for c in range(classes)], [0] + [3] * (classes - 1)))["rows"]
    assert [row["confusion"] is None for row in rows] == [False, True, False, True]
    assert all(row["per_class"] == [None] + [100.0] * (classes - 1) for row in rows)
