"""The evaluation stage on digits, with random encoders: what it writes, resumes and refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

from clpdd.config import CacheSettings, DatasetSettings, EvaluateSettings, KernelSettings, SplitLimits
from clpdd.datasets import Index, build_index
from clpdd.distilled import DistilledSet
from clpdd.encoders import Encoder, load_encoder
from clpdd.errors import ArtifactError, Preempted, SettingsError
from clpdd.evaluation import evaluate
from clpdd.evaluation.protocols import Variant
from clpdd.evaluation.tables import Result, details_json
from clpdd.features import FeatureStore, cache_features
from clpdd.files import canonical_json, read_json, sha256_bytes, sha256_file
from clpdd.kernels import compute_kernels

SETTINGS = EvaluateSettings(seeds=2, epochs=30, views=4, learning_rate=0.05, ridge=0.1)
NAMES = ("results.parquet", "metrics.json", "details.json", "plots/accuracy.csv")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class World:
    """Everything the stage reads."""

    root: Path
    encoders: Mapping[str, Encoder]
    distilled: Mapping[tuple[str, str], Path]

    def evaluate(self, room: Path, settings: EvaluateSettings = SETTINGS, **changes: Any) -> Path:
        encoders = changes.pop("encoders", self.encoders)
        arguments: dict[str, Any] = {
            "distilled": self.distilled,
            "encoders": encoders,
            "stores": {e: {s: self.root / e / f"{s}.zarr" for s in SPLITS} for e in encoders},
            "kernels": {e: self.root / e / "kernels" for e in encoders},
            "settings": settings,
            "seed": 0,
            "out": room / "results",
            "work_root": room / "work",
            "clocks": room / "clocks",
        }
        evaluate(**(arguments | changes))
        return room / "results"


def open_world(root: Path) -> World:
    """The world of ``build_world``, also for another process."""
    torch.set_num_threads(1)
    names = ("one", "two")
    encoders = {
        e: load_encoder(e, model="clpdd_resnet14", weights=root / f"{e}.safetensors", image_size=32, device="cpu")
        for e in names
    }
    pairs = [("one", "clp"), ("one", "random"), ("one", "full"), ("two", "clp"), ("two", "full")]
    return World(root, encoders, {pair: root / "distilled" / "-".join(pair) for pair in pairs})


def build_world(root: Path) -> World:
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        save_file(timm.create_model("clpdd_resnet14", num_classes=0).state_dict(), root / f"{name}.safetensors")
    world = open_world(root)
    limits = SplitLimits(train=12, validation=6, test=8)
    index = build_index(DatasetSettings(max_per_class=limits), 0, root / "index")
    for name, encoder in world.encoders.items():
        for split in SPLITS:
            target = root / name / f"{split}.zarr"
            cache_features(index[split], encoder, CacheSettings(workers=0), target, root / "work", progress=False)
        stores = root / name / "train.zarr", root / name / "validation.zarr"
        compute_kernels(*stores, KernelSettings(), root / name / "kernels", root / "work")
    train = Index.open(index["train"])
    for (encoder_name, method), folder in world.distilled.items():
        made_set(train, method, world.encoders[encoder_name]).save(folder)
    return world


def made_set(train: Index, method: str, encoder: Encoder) -> DistilledSet:
    """Real training images in the guise of every method: one per class, three draws for ``random``."""
    info = {"method": method, "dataset": "digits", "images_per_class": 1, "encoder": encoder.describe()}
    if method == "full":
        nothing = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        return DistilledSet(nothing, torch.zeros(0, dtype=torch.int64), train.class_names, info)
    labels = np.asarray(train.labels)
    draws = 3 if method == "random" else 1
    rows = [int((labels == c).nonzero()[0][draw]) for draw in range(draws) for c in range(10)]
    images = torch.stack([torch.from_numpy(np.array(train.image(row).resize((32, 32)))) for row in rows])
    draw = torch.arange(draws).repeat_interleave(10)
    return DistilledSet(
        images.permute(0, 3, 1, 2).contiguous(), torch.arange(10).repeat(draws), train.class_names, info, draw=draw
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def room(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation."""
    room = tmp_path_factory.mktemp("room")
    world.evaluate(room)
    return room


def contents(results: Path) -> dict[str, bytes]:
    return {name: (results / name).read_bytes() for name in NAMES}


def rows_of(results: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(results / "results.parquet").to_pylist()
    return rows


# -- what is written ---------------------------------------------------------------------------------------------------


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
    assert lines[0] == "encoders,method,protocol,top1,std"
    assert f"one -> two,random,sgd-bank-4,{found['top1']},{found['top1_std']}" in lines


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


# -- repeated and interrupted runs -------------------------------------------------------------------------------------


def test_another_run_writes_the_same_bytes(world: World, room: Path, tmp_path: Path) -> None:
    time.sleep(0.01)
    assert contents(world.evaluate(tmp_path)) == contents(room / "results")


def test_clocks_go_to_the_sidecar_alone(room: Path) -> None:
    clocks = read_json(room / "clocks" / "evaluate.json")
    pieces = {(r["distil_encoder"], r["method"], r["eval_encoder"], r["protocol"], r["views"]) for r in clocks["rows"]}
    assert len(pieces) == len(clocks["rows"]) == 3 * 2 * 3 + 2 * 2 * 2
    assert all(r["seconds"] > 0 and r["peak_memory_mb"] > 10 for r in clocks["rows"])
    shared = {json.dumps(r) for r in clocks["rows"] if r["method"] == "full" and r["distil_encoder"] == "two"}
    rest = [r for r in clocks["rows"] if json.dumps(r) not in shared]
    assert clocks["seconds"] == pytest.approx(sum(r["seconds"] for r in rest))
    assert "seconds" not in pq.read_table(room / "results" / "results.parquet").column_names
    assert not any(b"second" in data for data in contents(room / "results").values())


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_piece_and_ends_in_the_same_bytes(
    world: World, room: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_evaluation import open_world\n"
        "open_world(Path(sys.argv[2])).evaluate(Path(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(world.root), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(pieces := list((tmp_path / "work").rglob("out/[!.]*.json"))) < 2:  # not those being written
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "results").exists()
    kept = {piece: (piece.stat().st_ino, sha256_file(piece)) for piece in pieces}
    torch.set_num_threads(1)
    assert contents(world.evaluate(tmp_path)) == contents(room / "results")
    assert {piece: (piece.stat().st_ino, sha256_file(piece)) for piece in kept} == kept


def test_a_run_that_is_asked_to_stop_says_so_and_goes_on_later(world: World, room: Path, tmp_path: Path) -> None:
    def stop_when_it_works() -> None:
        while not (tmp_path / "work" / "evaluate").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_works, daemon=True).start()
    with pytest.raises(Preempted, match="SIGTERM"):
        world.evaluate(tmp_path, SETTINGS.model_copy(update={"epochs": 10**6}))
    assert contents(world.evaluate(tmp_path)) == contents(room / "results")


def test_an_altered_piece_is_made_again_and_a_finished_one_is_not(
    world: World, room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(room, tmp_path / "copy")
    pieces = sorted((tmp_path / "copy" / "work").rglob("out/*.json"))
    kept = {piece: piece.stat().st_mtime_ns for piece in pieces[1:]}
    pieces[0].write_text(pieces[0].read_text().replace('"top1":', '"top1":1'))
    assert contents(world.evaluate(tmp_path / "copy")) == contents(room / "results")
    assert "altered" in caplog.text
    assert {piece: piece.stat().st_mtime_ns for piece in kept} == kept


def test_one_more_protocol_leaves_the_pieces_of_the_others(world: World, tmp_path: Path) -> None:
    only = SETTINGS.model_copy(update={"protocols": ["closed_form"]})
    distilled = {("one", "clp"): world.distilled["one", "clp"]}
    world.evaluate(tmp_path, only, distilled=distilled)
    before = {piece: piece.stat().st_mtime_ns for piece in (tmp_path / "work").rglob("out/*.json")}
    world.evaluate(tmp_path, distilled=distilled)
    after = {piece: piece.stat().st_mtime_ns for piece in (tmp_path / "work").rglob("out/*.json")}
    assert len(before) == 4
    assert len(after) == 6
    assert {piece: after[piece] for piece in before} == before


def test_the_order_in_which_draws_and_seeds_are_grouped_does_not_matter(
    world: World, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clpdd.evaluation.protocols._GROUP_BYTES", 1)  # every probe alone, its views in float16
    distilled = {("one", "random"): world.distilled["one", "random"]}
    found = rows_of(world.evaluate(tmp_path, distilled=distilled))
    expected = [r for r in rows_of(room / "results") if r["method"] == "random"]
    assert [r["top1"] for r in found] == pytest.approx([r["top1"] for r in expected], abs=4)  # three of 80 images


# -- refusals ----------------------------------------------------------------------------------------------------------


def altered(world: World, tmp_path: Path, **changes: Any) -> dict[tuple[str, str], Path]:
    data = DistilledSet.load(world.distilled["one", "clp"])
    replace(data, **changes).save(tmp_path / "altered")
    return {("one", "clp"): tmp_path / "altered"}


def test_an_empty_set_is_refused(world: World, tmp_path: Path) -> None:
    data = DistilledSet.load(world.distilled["one", "clp"])
    distilled = altered(world, tmp_path, images=data.images[:0], labels=data.labels[:0], draw=None)
    with pytest.raises(ArtifactError, match="altered holds no images"):
        world.evaluate(tmp_path, distilled=distilled)


def test_other_classes_are_refused(world: World, tmp_path: Path) -> None:
    names = [*DistilledSet.load(world.distilled["one", "clp"]).class_names, "ten"]
    with pytest.raises(ArtifactError, match=r"11 classes .* the test features have 10"):
        world.evaluate(tmp_path, distilled=altered(world, tmp_path, class_names=names))


def test_a_set_of_another_method_is_refused(world: World, tmp_path: Path) -> None:
    distilled = {("one", "centroid"): world.distilled["one", "clp"]}
    with pytest.raises(ArtifactError, match="made by the method clp, not centroid"):
        world.evaluate(tmp_path, distilled=distilled)


def test_stores_kernels_and_sets_of_another_encoder_are_refused(world: World, tmp_path: Path) -> None:
    swapped = {"one": world.encoders["two"], "two": world.encoders["one"]}
    with pytest.raises(ArtifactError, match=r"train\.zarr was made with another encoder than one: digest"):
        world.evaluate(tmp_path, encoders=swapped)
    with pytest.raises(ArtifactError, match=r"kernels was made with another encoder than one"):
        world.evaluate(tmp_path, kernels=dict.fromkeys(world.encoders, world.root / "two" / "kernels"))
    with pytest.raises(ArtifactError, match="was distilled with another encoder than two"):
        world.evaluate(tmp_path, distilled={("two", "clp"): world.distilled["one", "clp"]})


def test_splits_that_are_mixed_up_are_refused(world: World, tmp_path: Path) -> None:
    wrong = {e: dict.fromkeys(SPLITS, world.root / e / "train.zarr") for e in world.encoders}
    with pytest.raises(ArtifactError, match="holds the split train, not validation"):
        world.evaluate(tmp_path, stores=wrong)


def test_nothing_to_evaluate_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least one method"):
        world.evaluate(tmp_path, distilled={})


# -- tables ------------------------------------------------------------------------------------------------------------


def test_only_the_first_protocol_keeps_its_confusion_when_there_are_many_classes() -> None:
    classes = 201
    matrix = (3 * torch.eye(classes, dtype=torch.int64)).tolist()
    matrix[0] = [0] * classes  # a class without test images
    piece = {"rows": [{"draw": 0, "seed": 0, "top1": 100.0, "top5": 100.0}], "confusion": matrix, "notes": {}}
    results = [
        Result("d", "clp", "one", target, Variant(protocol, "clean"), 1, "f", {}, piece)
        for target in ("one", "two")
        for protocol in ("sgd", "closed_form")
    ]
    rows = json.loads(details_json(results, [str(c) for c in range(classes)], [0] + [3] * (classes - 1)))["rows"]
    assert [row["confusion"] is None for row in rows] == [False, True, False, True]
    assert all(row["per_class"] == [None] + [100.0] * (classes - 1) for row in rows)
