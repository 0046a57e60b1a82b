"""Classes with fewer images than a method takes of them are refused before anything is encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clpdd.cli.main import main
from clpdd.config.loading import parse_settings
from clpdd.errors import SettingsError

from .datasets.pictures import png

SIZES = {"big": 40, "mid": 8, "rare": 3, "10": 5}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    start = 0
    for name, count in SIZES.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(count):
            (tmp_path / f"photos/{name}/{k}.png").write_bytes(png(start + k))
        start += count
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(home: Path, **changes: Any) -> None:
    values = {"dataset": {"name": "folder", "train": "photos"}, "methods": ["clp"], "runtime": {"threads": 1}} | changes
    (home / "params.yaml").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["clp"]},
        {"methods": ["random"]},
        {"methods": ["k-medoids"]},
        {"methods": ["chosen"], "variants": {"chosen": {"method": "herding"}}},
        {"methods": ["full", "centroid"]},
        {"methods": ["neighbor"]},
        {"methods": ["hot"], "variants": {"hot": {"method": "clp", "temperature": 1.0}}},
    ],
)
def test_a_class_that_is_too_small_is_refused_at_index_and_the_remedy_works(
    home: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    settings(home, distill={"images_per_class": 5}, **changes)
    assert main(["index"]) == 2
    said = capsys.readouterr().err
    assert (
        f"for class '10', which has 3 training images (and 1 more classes), and the method {changes['methods'][-1]}"
        in said
    )
    assert 'distill.images_per_class: {default: 5, "10": 3, "rare": 1}' in said
    assert not (home / "data/index").exists()
    remedy = said.partition("distill.images_per_class: {default")[2].strip()
    lines = json.dumps({"dataset": {"name": "folder", "train": "photos"}, "runtime": {"threads": 1}, **changes})[1:-1]
    (home / "params.yaml").write_text(f"{{{lines}, distill: {{images_per_class: {{default{remedy}}}}}\n")
    assert main(["index"]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"methods": ["full"]},
        {"methods": ["lgm"]},  # begins with noise
        {"methods": ["noisy"], "variants": {"noisy": {"method": "clp", "initialisation": "noise"}}},
        {"methods": ["neighbor"], "distill": {"images_per_class": 5, "neighbor_of": "lgm"}},
    ],
)
def test_methods_that_take_no_real_images_are_not_refused(home: Path, changes: dict[str, Any]) -> None:
    settings(home, **({"distill": {"images_per_class": 5}} | changes))
    assert main(["index"]) == 0


def test_images_left_out_as_bad_do_not_count(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(
        home,
        dataset={"name": "folder", "train": "photos", "bad_images": "skip"},
        distill={"images_per_class": {"default": 1, "mid": 5}},
    )
    assert main(["index"]) == 0
    for k in range(4):
        (home / f"photos/mid/{k}.png").write_bytes(b"no image")
    assert main(["index"]) == 2
    assert "for class 'mid', which has" in capsys.readouterr().err


def test_settings_that_change_after_the_index_are_refused_before_encoding(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(home)
    assert main(["index"]) == 0
    settings(home, distill={"images_per_class": 2})
    assert main(["cache", "--encoder", "clpdd_resnet14"]) == 2
    assert "for class 'rare', which has 1 training images, and the method clp" in capsys.readouterr().err
    assert not (home / "data/features").exists()
    settings(home, distill={"images_per_class": {"default": 1, "rrae": 2}})
    assert main(["cache", "--encoder", "clpdd_resnet14"]) == 2
    assert "names 'rrae', which is no class of the data; near names: rare" in capsys.readouterr().err


def test_the_counts_are_compared_class_by_class() -> None:
    made = parse_settings({"methods": ["centroid"], "distill": {"images_per_class": {"default": 2, "a": 4}}})
    made.refuse_small_classes(["a", "b"], [4, 2])
    with pytest.raises(SettingsError, match="is 4 for class 'a', which has 3 training images, and"):
        made.refuse_small_classes(["a", "b"], [3, 2])
    with pytest.raises(SettingsError, match="is 2 for class 'b', which has 1 training images, and"):
        made.refuse_small_classes(["a", "b"], [4, 1])


def test_an_index_that_is_refused_leaves_the_one_before_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "folder", "train": "photos"}
    settings(home, dataset=data, methods=["full"])
    assert main(["index"]) == 0
    index = home / "data" / "index" / "train.parquet"
    kept, mark = index.read_bytes(), index.stat()
    settings(home, dataset=data, distill={"images_per_class": 5})  # the finished index does not have them either
    assert main(["index"]) == 2
    assert "which has 3 training images" in capsys.readouterr().err
    assert index.read_bytes() == kept
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (mark.st_ino, mark.st_mtime_ns)
    index.unlink()
    assert main(["index"]) == 2
    assert not index.exists()
