"""``clpdd run``: one command from photos to the report, on the stages that DVC runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from clpdd.cli.main import main
from clpdd.cli.photos import dataset_of, settings_for
from clpdd.config.loading import load_settings, parse_settings
from clpdd.errors import DataError
from clpdd.stages.order import STAGES, Step, steps
from clpdd.storage.files import sha256_tree
from tests.photos import QUICK, draw_photos

ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, with photos and quick settings, to run in."""
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    (tmp_path / "quick.yaml").write_text(QUICK)
    return tmp_path


def test_dvc_runs_the_same_stages_in_the_same_order_for_the_same_items() -> None:
    described: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    described.pop("benchmark")  # part of no default run
    assert list(described) == list(STAGES)
    for name, stage in described.items():
        matrix = stage.get("matrix", {})
        assert list(matrix.values()) == [f"${{{key}}}" for key in STAGES[name].over]
        items = tuple(f"${{item.{key}}}" for key in matrix)
        assert stage["cmd"] == " ".join(["clpdd", *Step(name, items).command])


def test_every_encoder_and_method_has_its_steps() -> None:
    settings = parse_settings({"encoders": ["resnet10t", "resnet18"], "methods": ["clp", "full"]})
    assert [str(step) for step in steps(settings)][:8] == [
        "inputs",
        "index",
        "cache (resnet10t)",
        "cache (resnet18)",
        "kernels (resnet10t)",
        "kernels (resnet18)",
        "distill (resnet10t, clp)",
        "distill (resnet10t, full)",
    ]
    assert [step.stage for step in steps(settings)][-3:] == ["distill", "evaluate", "report"]


def test_photos_become_a_table_and_a_report_in_one_command_and_stages_by_hand_make_the_same_bytes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "photos", "--params", "quick.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "CLP-DD" in (here / "data/results/report.html").read_text()
    assert shown.splitlines()[-1] == f"report: {(here / 'data/results/report.html').as_uri()}"
    assert load_settings("data/params.yaml").dataset.train == "photos"
    assert main(["results"]) == 0  # finds the settings that the run has left
    assert capsys.readouterr().out == shown
    by_hand = ["--params", "data/params.yaml", "--data", "other"]
    for step in steps(load_settings("data/params.yaml"))[:5]:
        assert main([*by_hand, *step.command]) == 0
    assert main(["run", "--params", "data/params.yaml", "--out", "other"]) == 0  # goes on from there
    for name in ("distilled", "results/results.parquet", "results/report.json"):
        assert sha256_tree(here / "data" / name) == sha256_tree(here / "other" / name), name


def test_a_second_run_makes_nothing_again(here: Path) -> None:
    arguments = ["run", "photos", "--params", "quick.yaml", "--out", "mine"]
    assert main(arguments) == 0
    before = {path: path.stat().st_mtime_ns for path in (here / "mine" / "work").rglob("done.json")}
    assert len(before) == 1 + 3 + 1 + 2 + 2  # index, features of three splits, kernels, two sets, two evaluations
    assert main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_is_wrong_is_refused_before_anything_is_written(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["run"], "clpdd run photos/"),
        (["run", "fotos"], "fotos does not exist"),
        (["run", "photos", "--encoder", "resnet1O"], "near names: resnet1"),
    ):
        assert main(arguments) in (2, 3)
        assert told in capfd.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["photos", "quick.yaml"]


def test_photos_are_taken_for_what_they_are(tmp_path: Path) -> None:
    one = draw_photos(tmp_path / "one", 1)
    assert dataset_of(one) == {"name": "folder", "train": str(one)}
    for split in ("train", "val", "test"):
        draw_photos(tmp_path / "split" / split, 1)
    found = {"train": "train", "validation": "val", "test": "test"}
    expected = {key: str(tmp_path / "split" / name) for key, name in found.items()}
    assert dataset_of(tmp_path / "split") == {"name": "folder"} | expected
    vehicles = draw_photos(tmp_path / "vehicles", 1, ("train", "tram"))  # a class may be called so
    assert dataset_of(vehicles) == {"name": "folder", "train": str(vehicles)}
    (tmp_path / "tables [1]").mkdir()
    for name in ("train-0.parquet", "train-1.parquet", "test.parquet", "readme.txt"):
        (tmp_path / "tables [1]" / name).touch()
    tables = dataset_of(tmp_path / "tables [1]")
    assert (tables["name"], len(tables["train"]), len(tables["test"])) == ("parquet", 2, 1)
    file = tmp_path / "tables [1]" / "train-0.parquet"
    assert dataset_of(file) == {"name": "parquet", "train": str(file)}
    (tmp_path / "empty").mkdir()
    for wrong, told in (("empty", "has no folders"), ("gone", "does not exist"), ("one/red/0.png", "unpack it")):
        with pytest.raises(DataError, match=told):
            dataset_of(tmp_path / wrong)


def test_settings_named_for_photos_keep_all_but_their_images_and_the_encoder(here: Path) -> None:
    base = load_settings(ROOT / "params.yaml")
    found = settings_for(here / "photos", "resnet10t", base)
    assert (found.dataset.name, found.dataset.train) == ("folder", str(here / "photos"))
    assert found.encoders == ["resnet10t"]
    assert (found.distill, found.evaluate) == (base.distill, base.evaluate)
    plain = settings_for(here / "photos", None, None)
    assert (plain.dataset.bad_images, plain.dataset.duplicates, plain.distill.augment.flip) == ("skip", "drop", 0.5)
    assert plain.dataset.empty_classes == "drop"
    assert plain.dataset.title == "photos"


def test_an_encoder_may_be_named_with_its_options_beside_it(here: Path) -> None:
    encoder = ["--encoder", "small", "--model", "clpdd_resnet14", "--image-size", "32"]
    assert main(["run", "photos", "--params", "quick.yaml", *encoder]) == 0
    used = load_settings(here / "data" / "params.yaml")
    assert used.encoders == ["small"]
    assert used.encoder_options["small"].image_size == 32


def test_options_in_the_file_of_an_encoder_that_is_named_on_the_line_are_used(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "options.yaml").write_text("encoder_options: {resnet10t: {weights: gone.safetensors}}\n")
    assert main(["run", "photos", "--params", "options.yaml", "--encoder", "resnet10t"]) == 4
    assert "gone.safetensors does not exist" in capsys.readouterr().err
    assert main(["run", "photos", "--encoder", "resnet10t", "--weights", "lost.safetensors"]) == 4
    assert "lost.safetensors does not exist" in capsys.readouterr().err
    (here / "sub").mkdir()
    (here / "options.yaml").rename(here / "sub" / "options.yaml")
    named = ["run", "photos", "--params", "sub/options.yaml", "--encoder", "resnet10t"]
    assert main([*named, "--weights", "lost.safetensors"]) == 4
    assert "lost.safetensors does not exist" in (told := capsys.readouterr().err)
    assert "sub/" not in told
    assert main(named) == 4
    assert "sub/gone.safetensors does not exist" in capsys.readouterr().err
    assert main(["run", "photos", "--weights", "lost.safetensors"]) == 2
    assert "--weights is of an encoder: name it with --encoder" in capsys.readouterr().err


def test_unreadable_photos_are_left_out_and_told(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "photos" / "red" / "broken.png").write_bytes(b"no picture")
    (here / "quick.yaml").write_text(QUICK + "dataset: {bad_images: skip}\n")
    assert main(["run", "photos", "--params", "quick.yaml"]) == 0
    assert len(re.findall(r"left out as bad: 1, e\.g\. red/broken\.png", caplog.text)) == 1
    counts = "photos: 20 images of 2 classes: 14 train (7 a class), 2 validation (1 a class), 4 test (2 a class)"
    assert counts in caplog.messages
    caplog.clear()
    assert main(["--params", "data/params.yaml", "index"]) == 0  # published again: it is said again
    said = [message for message in caplog.messages if "left out" in message or "images of" in message]
    assert said[0].startswith("left out as bad: 1, e.g. red/broken.png")
    assert said[1] == counts
    assert pq.read_table("data/index/train.parquet").num_rows == 14
