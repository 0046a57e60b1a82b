"""Two settings files and one data folder: the second is refused, or both remain."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from clpdd.cli.main import main
from clpdd.storage.files import read_json, sha256_tree

from .datasets.pictures import png

QUICK: dict[str, Any] = {
    "dataset": {"name": "folder", "train": "photos"},
    "encoder_options": {"clpdd_resnet14": {"image_size": 16}},
    "methods": ["centroid"],
    "evaluate": {"seeds": 1, "epochs": 2, "views": 1, "protocols": ["closed_form"]},
    "runtime": {"threads": 1, "workers": 0},
}
STAGES = {
    "index": "",
    "cache": "--encoder clpdd_resnet14",
    "kernels": "--encoder clpdd_resnet14",
    "distill": "--encoder clpdd_resnet14 --method centroid",
    "evaluate": "",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for k in range(24):
        path = tmp_path / f"photos/{'ab'[k % 2]}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k, 16))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(file: str, **changes: Any) -> str:
    Path(file).write_text(json.dumps(QUICK | changes))
    return file


def run(file: str, stage: str, data: str = "d") -> int:
    return main(["--params", file, "--data", data, stage, *shlex.split(STAGES[stage])])


def test_a_second_seed_is_refused_at_its_first_command_and_a_folder_of_its_own_keeps_both(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = settings("p0.yaml", seed=0), settings("p1.yaml", seed=1)
    assert [run(first, stage) for stage in STAGES] == [0] * 5
    before = sha256_tree(home / "d/results"), sha256_tree(home / "d/index")
    capsys.readouterr()
    assert run(second, "index") == 2
    said = capsys.readouterr().err
    assert "d/index/train.parquet was made from p0.yaml, and p1.yaml has other settings (seed was 0, is 1)" in said
    assert (sha256_tree(home / "d/results"), sha256_tree(home / "d/index")) == before
    for stage in ("distill", "evaluate"):
        assert run(second, stage) == 2
    assert [run(first, stage) for stage in STAGES] == [0] * 5
    advised = re.search(r"--data (\S+),", said)
    assert advised is not None
    assert [run(second, stage, advised[1]) for stage in STAGES] == [0] * 5
    assert (home / "d/results/results.parquet").read_bytes() != (home / "d-p1/results/results.parquet").read_bytes()
    assert read_json(home / "d/distilled/clpdd_resnet14/centroid/distilled.json")["fingerprint"]
    shutil.rmtree(home / "d/index")  # the other remedy
    assert run(second, "index") == 0


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        (
            "index",
            {"dataset": {"name": "folder", "train": "photos", "test_fraction": 0.3}},
            "dataset.test_fraction was 0.2, is 0.3",
        ),
        ("cache", {"cache": {"dtype": "float32"}}, "cache.dtype was 'float16', is 'float32'"),
        ("cache", {"encoder_options": {"clpdd_resnet14": {"image_size": 24}}}, "image_size was 16, is 24"),
        ("kernels", {"kernels": {"nearest": 11}}, "kernels.nearest was 10, is 11"),
        ("distill", {"distill": {"images_per_class": 2}}, "distill.images_per_class was 1, is 2"),
        ("distill", {"variants": {"centroid": {"images_per_class": 2}}}, "distill.images_per_class was 1, is 2"),
        ("evaluate", {"methods": ["centroid", "full"]}, "methods was ['centroid'], is ['centroid', 'full']"),
        ("evaluate", {"evaluate": QUICK["evaluate"] | {"seeds": 2}}, "evaluate.seeds was 1, is 2"),
    ],
)
def test_another_file_s_artifact_is_not_replaced_where_any_setting_that_decides_it_differs(
    home: Path, capsys: pytest.CaptureFixture[str], stage: str, changes: dict[str, Any], said: str
) -> None:
    first, second = settings("p0.yaml"), settings("p1.yaml", **changes)
    order = list(STAGES)
    for one in order[: order.index(stage) + 1]:
        assert run(first, one) == 0
    for one in order[: order.index(stage)]:
        assert run(second, one) == 0, one  # what is decided alike is shared
    capsys.readouterr()
    assert run(second, stage) == 2
    assert said in capsys.readouterr().err


def test_the_same_file_may_change_and_a_file_of_equal_settings_goes_on(home: Path) -> None:
    first = settings("p0.yaml")
    assert run(first, "index") == 0
    settings("p0.yaml", seed=5)
    assert run(first, "index") == 0
    assert run(settings("copy.yaml", seed=5, runtime={"threads": 2, "workers": 0}), "index") == 0
    (home / "d" / "work" / "settings" / "index.json").write_text("{")  # a note that cannot be read holds nobody up
    assert run(settings("p1.yaml", seed=6), "index") == 0


def test_a_moved_project_and_another_working_folder_are_no_other_settings(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "p").mkdir()
    (home / "photos").rename(home / "p/photos")
    settings("p/params.yaml")
    assert main(["--params", "p/params.yaml", "--data", "p/data", "index"]) == 0
    (home / "p").rename(home / "q")
    settings("q/params.yaml", seed=3)  # changed since
    monkeypatch.chdir(home / "q")
    assert main(["index"]) == 0
