"""Paths in a settings file follow the file: commands may run anywhere, and a project may be moved."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clpdd.cli.main import main
from clpdd.config.loading import load_settings
from clpdd.datasets.index import Index
from clpdd.storage.layout import SPLITS

from .datasets.pictures import pixel, png
from .datasets.test_parquet import structs, write_parquet
from .datasets.test_webdataset import samples, shard


def folders(home: Path) -> None:
    for k in range(40):
        path = home / f"photos/{'ab'[k % 2]}/{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))


def tables(home: Path) -> None:
    for part in range(2):
        write_parquet(home / f"tables/train-{part}.parquet", structs(20, 20 * part), [k % 2 for k in range(20)])


def shards(home: Path) -> None:
    for part in range(2):
        shard(home / f"shards/train-{part}.tar", samples(range(20 * part, 20 * part + 20), classes=2))


WAYS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a folder named by its files": (folders, "{name: folder, train: photos, store: paths}"),
    "a folder that is copied": (folders, "{name: folder, train: ./photos, store: bytes}"),
    "tables": (tables, "{name: parquet, train: [tables/train-0.parquet, 'tables/train-[1].parquet']}"),
    "shards": (shards, "{name: webdataset, train: 'shards/train-{0..1}.tar', store: paths}"),
}


def indexed(data: Path) -> dict[str, bytes]:
    return {split: (data / "index" / f"{split}.parquet").read_bytes() for split in SPLITS}


def readable(data: Path) -> bool:
    indexes = [Index.open(data / "index" / f"{split}.parquet") for split in SPLITS]
    return sorted(pixel(index, row) for index in indexes for row in range(len(index))) == list(range(40))


@pytest.mark.parametrize("way", WAYS)
def test_an_index_is_the_same_wherever_the_command_runs_and_goes_along_when_all_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    make, dataset = WAYS[way]
    home, elsewhere = tmp_path / "p", tmp_path / "else/where"
    home.mkdir()
    elsewhere.mkdir(parents=True)
    make(home)
    (home / "params.yaml").write_text(f"dataset: {dataset}\nruntime: {{threads: 1}}\n")
    monkeypatch.chdir(home)
    assert main(["index"]) == 0
    first = indexed(home / "data")
    assert readable(Path("data"))
    monkeypatch.chdir(elsewhere)
    assert readable(home / "data")
    for params in (home / "params.yaml", Path("../../p/params.yaml")):
        shutil.rmtree(home / "data")
        assert main(["--params", str(params), "--data", str(params.parent / "data"), "index"]) == 0
        assert indexed(home / "data") == first
    moved = tmp_path / "q r"
    home.rename(moved)
    assert readable(moved / "data")
    assert readable(Path("../../q r/data"))
    (tmp_path / "link").symlink_to(moved)
    monkeypatch.chdir(tmp_path / "link")
    assert readable(Path("data"))
    assert main(["--data", "other", "index"]) == 0
    assert indexed(Path("other")) == first
    assert main(["--data", str(tmp_path / "apart/data"), "index"]) == 0  # data that lie in another tree
    monkeypatch.chdir(tmp_path)
    assert readable(tmp_path / "apart/data")


def test_weights_and_local_models_follow_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "p"
    home.mkdir()
    (home / "params.yaml").write_text(
        "encoders: [one, two, three, four]\n"
        "encoder_options:\n"
        "  one: {model: resnet18, weights: w/one.safetensors}\n"
        "  two: {model: 'local-dir:models/two'}\n"
        "  three: {model: resnet18, weights: /abs/three.safetensors}\n"
        "  four: {model: resnet18, weights: ~/four.safetensors}\n"
    )

    def places() -> dict[str, Any]:
        options = load_settings(Path(os.path.relpath(home / "params.yaml"))).encoder_options
        return {name: own.weights or own.model for name, own in options.items()}

    fixed = {"three": "/abs/three.safetensors", "four": os.path.expanduser("~/four.safetensors")}
    monkeypatch.chdir(home)
    assert places() == {"one": "w/one.safetensors", "two": "local-dir:models/two", **fixed}
    monkeypatch.chdir(tmp_path)
    assert places() == {"one": "p/w/one.safetensors", "two": "local-dir:p/models/two", **fixed}


def test_a_dataset_s_own_folders_follow_the_settings_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "p"
    (home / "sets/h").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for text, expected in (
        ("{name: cub200, root: birds}", {"root": "p/birds"}),
        ("{name: cub200, root: ~/birds}", {"root": "~/birds"}),  # expanded where it is read
        ("{name: cub200, root: /birds}", {"root": "/birds"}),
        ("{name: 'hf:sets/h', root: cache}", {"name": "hf:p/sets/h", "title": "hf:sets/h", "root": "p/cache"}),
        ("{name: 'hf:owner/name'}", {"name": "hf:owner/name", "title": None}),
        ("{name: folder, train: [a, /b], test: ../c}", {"train": ["p/a", "/b"], "test": "c"}),
    ):
        (home / "params.yaml").write_text(f"dataset: {text}\n")
        dataset = load_settings(home / "params.yaml").dataset
        assert {key: getattr(dataset, key) for key in expected} == expected


def test_a_preset_s_root_is_found_from_the_folder_it_was_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parent.parent
    home = tmp_path / "p"
    home.mkdir()
    shutil.copy(root / "params.yaml", home)
    monkeypatch.chdir(tmp_path)
    assert main(["--params", "p/params.yaml", "preset", "cub200-clip", "--root", "birds"]) == 0
    assert load_settings(home / "params.yaml").dataset.root == str(tmp_path / "birds")
    monkeypatch.chdir(home)
    assert main(["preset", "cub200-clip", "--root", "birds"]) == 0
    assert load_settings("params.yaml").dataset.root == "birds"
