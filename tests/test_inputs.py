"""The stage that always runs: unchanged inputs are the same bytes, changed ones are named."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clpdd.config.loading import load_settings, parse_settings
from clpdd.config.settings import Settings
from clpdd.datasets.index import Index
from clpdd.errors import ArtifactError, DataError, SettingsError
from clpdd.stages.index import run_index
from clpdd.stages.inputs import run_inputs
from clpdd.stages.project import Project
from clpdd.storage import digests
from clpdd.storage.digests import RememberedDigests
from clpdd.storage.files import read_json
from clpdd.storage.layout import Layout
from tests.datasets.pictures import png

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ten images in two classes, and weights of two encoders."""
    for number in range(10):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    for name in ("one", "other"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**values: Any) -> Settings:
    options = {name: {"model": "resnet10t", "weights": f"{name}.safetensors"} for name in ("one", "other")}
    given = {"dataset": {"name": "folder", "train": "photos"}, "encoders": ["one", "other"], "encoder_options": options}
    return parse_settings(given | values)


def written(place: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of every file that other stages depend on."""
    folder = place / "data" / "inputs"
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def look(**values: Any) -> list[str]:
    return run_inputs(settings(**values), Layout(Path("data")))


def test_a_settings_file_that_lacks_what_dvc_follows_is_refused_with_lines_that_help(place: Path) -> None:
    own = "  mine:\n    cmd: 'true'\n    params: [mine.yaml: [value]]\n"  # a stage that the user has added
    (place / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text().replace("stages:\n", f"stages:\n{own}", 1))
    params = place / "params.yaml"
    params.write_text("dataset: {name: folder, train: photos}\nencoders: [clpdd_resnet14]\nmethods: [centroid]\n")
    command = [sys.executable, "-m", "clpdd", "inputs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    assert run().returncode == 0  # without DVC, what is left out takes its default
    done = run(DVC_STAGE="inputs")
    assert done.returncode == SettingsError.exit_code
    said, *lines = done.stderr.splitlines()
    assert "has no benchmark, cache, distill, encoder_options, evaluate, kernels, precision, report, seed, " in said
    assert "  seed: 0" in lines
    assert '  precision: "auto"' in lines
    assert "  cache: {}" in lines
    before = load_settings(params)
    params.write_text(params.read_text() + "\n".join(line.strip() for line in lines) + "\n")
    assert run(DVC_STAGE="inputs").returncode == 0
    assert load_settings(params) == before


def test_unchanged_inputs_leave_the_files_alone(place: Path) -> None:
    assert look() == []
    before = written(place)
    assert set(before) == {"dataset.json", "encoders/one.json", "encoders/other.json"}
    assert look() == []
    assert written(place) == before
    (place / "data" / "inputs" / "dataset.json").unlink()  # as DVC does before every run
    assert look() == []
    assert {name: data for name, (data, _) in written(place).items()} == {n: data for n, (data, _) in before.items()}


def test_a_change_is_named_and_concerns_those_files_alone_that_know_of_it(place: Path) -> None:
    look()
    before = written(place)

    def changed() -> set[str]:
        return {name for name, found in written(place).items() if found != before[name]}

    (place / "one.safetensors").write_bytes(b"ONE")
    assert look() == ["weights of encoder one changed: one.safetensors"]
    assert changed() == {"encoders/one.json"}
    before = written(place)
    (place / "photos" / "b" / "new.png").write_bytes(png(99))
    assert look() == ["images changed in photos: 1 added (b/new.png)"]
    assert changed() == {"dataset.json"}
    assert look() == []


def test_weights_put_back_under_their_size_and_date_are_read(place: Path) -> None:
    look()
    status = (place / "one.safetensors").stat()
    (place / "new").write_bytes(b"two")
    os.utime(place / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    (place / "new").replace(place / "one.safetensors")
    assert look() == ["weights of encoder one changed: one.safetensors"]


def test_weights_of_members_and_of_model_folders_are_seen(place: Path) -> None:
    folder = place / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"first")
    options: dict[str, Any] = {
        "one": {"model": "resnet10t", "weights": "one.safetensors"},
        "dir": {"model": "local-dir:model"},
        "both": {"members": {"one": 1.0, "dir": 1.0}},
    }
    given = {"encoders": ["both"], "encoder_options": options}
    look(**given)
    found = read_json("data/inputs/encoders/both.json")
    assert {name: sorted(files) for name, files in found["weights"].items()} == {
        "one": ["one.safetensors"],
        "dir": ["model/config.json", "model/model.safetensors"],
    }
    (folder / "model.safetensors").write_bytes(b"other")
    assert look(**given) == ["weights of encoder dir changed: model/model.safetensors"]
    (place / "one.safetensors").write_bytes(b"ONE")
    assert look(**given) == ["weights of encoder one changed: one.safetensors"]


def test_another_timm_is_named_and_the_build_of_torch_is_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = importlib.metadata.version
    versions = {"timm": "1.0.29", "torch": "2.8.0+cpu"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or own(name))
    look()
    assert read_json("data/inputs/encoders/one.json")["versions"] == {"timm": "1.0.29", "torch": "2.8.0"}
    versions["torch"] = "2.8.0+cu128"
    assert look() == []
    versions["timm"] = "1.0.30"
    assert look() == ["timm was 1.0.29, is 1.0.30: what encodes with it runs again"]
    assert read_json("data/inputs/encoders/one.json")["versions"]["timm"] == "1.0.30"


def test_weights_that_are_not_there_are_refused_by_the_encoders_name_before_anything_is_written(place: Path) -> None:
    (place / "other.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"other.safetensors does not exist: .* encoder_options.other.weights"):
        look()
    assert written(place) == {}
    (place / "other.safetensors").write_bytes(b"x")  # the remedy
    assert look() == []


def test_an_encoder_that_is_gone_leaves_no_file(place: Path) -> None:
    look()
    look(encoders=["one"], encoder_options={"one": {"model": "resnet10t", "weights": "one.safetensors"}})
    assert set(written(place)) == {"dataset.json", "encoders/one.json"}


def test_a_damaged_memory_costs_a_name_and_nothing_else(place: Path) -> None:
    look()
    before = {name: data for name, (data, _) in written(place).items()}
    for path in (place / "data" / "work" / "inputs").glob("*.json"):
        path.write_text("{")
    assert look() == []
    assert {name: data for name, (data, _) in written(place).items()} == before


def test_a_digest_is_remembered_until_the_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    own = digests.sha256_file

    def counted(path: Path) -> str:
        read.append(path)
        return own(path)

    monkeypatch.setattr(digests, "sha256_file", counted)
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    for _ in range(2):
        known = RememberedDigests(tmp_path / "memory.json")
        assert known.of(file) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        known.save()
    assert read == [file]
    file.write_bytes(b"abc")
    assert RememberedDigests(tmp_path / "memory.json").of(file).startswith("ba7816bf")
    assert read == [file, file]


def test_images_of_the_same_size_and_time_are_indexed_again_when_bytes_are_watched(place: Path) -> None:
    given = {"dataset": {"name": "folder", "train": "photos", "watch": "bytes"}, "encoder_options": {}}
    project = Project(settings(encoders=["clpdd_resnet14"], **given), Layout(Path("data")))
    run_index(project)
    ids = [Index.open(project.layout.index(split)) for split in ("train", "validation", "test")]
    before = {index.ids[row]: index.encoded(row) for index in ids for row in range(len(index))}
    path = place / "photos" / "a" / "0.png"
    time = path.stat().st_mtime_ns
    assert len(png(50)) == len(png(0))
    path.write_bytes(png(50))
    os.utime(path, ns=(time, time))
    run_index(project)
    ids = [Index.open(project.layout.index(split)) for split in ("train", "validation", "test")]
    after = {index.ids[row]: index.encoded(row) for index in ids for row in range(len(index))}
    assert {name for name in after if after[name] != before[name]} == {"a/0.png"}
    assert after["a/0.png"] == png(50)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        ("fotos", "dataset: fotos does not exist; did you mean photos?"),
        ("../HERE/fotos", "dataset: ../HERE/fotos does not exist; did you mean ../HERE/photos?"),
        ("empty", "dataset: empty holds no file: put the images there, or name another place"),
    ],
)
def test_a_place_without_images_is_refused_and_what_was_noted_stays(place: Path, train: str, told: str) -> None:
    (place / "empty").mkdir()
    look()
    before = written(place)
    with pytest.raises(DataError) as refused:
        look(dataset={"name": "folder", "train": train.replace("HERE", place.name)})
    assert str(refused.value) == told.replace("HERE", place.name)
    assert written(place) == before


def test_the_command_takes_no_torch_and_says_that_all_is_as_it_was(place: Path) -> None:
    (place / "params.yaml").write_text("dataset: {name: folder, train: photos}\n")
    line = [sys.executable, "-X", "importtime", "-m", "clpdd", "inputs"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for said in ("inputs are noted: 10 files in photos, timm ", "inputs are up to date: 10 files in photos, timm "):
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        assert said in done.stderr
        assert not [row for row in done.stderr.splitlines() if row.endswith(("| torch", "| timm", "| pyarrow"))]
