"""Exports hold the same pixels and labels, in forms that other tools really read."""

from __future__ import annotations

import json
import tarfile
import unicodedata
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torchvision.datasets import ImageFolder

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import open_source
from clpdd.datasets.listing import BadImages
from clpdd.datasets.walking import is_clutter
from clpdd.distilled.classifier import Classifier
from clpdd.distilled.dataset import DistilledSet
from clpdd.distilled.export import FORMATS, export
from clpdd.distilled.naming import folder_names
from clpdd.errors import ArtifactError, ResourceError, SettingsError
from clpdd.storage.files import sha256_tree

NAMES = ["zero", "../one", "zwei/двa"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = DistilledSet(images, torch.tensor([0, 0, 1, 1, 2, 2]), NAMES, {"method": "clp", "dataset": "d"})
    folder = data.save(tmp_path / "set")
    Classifier(torch.ones(3, 5), torch.zeros(3), NAMES, {"dim": 5}).save(folder / "classifier.safetensors")
    return folder


@pytest.mark.parametrize("form", ["folder", "huggingface"])
def test_the_full_data_classifier_is_handed_over_with_folders(source: Path, tmp_path: Path, form: str) -> None:
    handed = Classifier.load(export(source, form, tmp_path / "out") / "classifier.safetensors")
    assert handed.class_names == NAMES
    assert torch.equal(handed.weight, torch.ones(3, 5))
    (source / "classifier.safetensors").unlink()  # as in sets of version 0.1
    assert not (export(source, form, tmp_path / "older") / "classifier.safetensors").exists()


def test_folder_opens_with_torchvision(source: Path, tmp_path: Path) -> None:
    data = DistilledSet.load(source)
    folder = ImageFolder(export(source, "folder", tmp_path / "out"))
    assert len(folder) == 6
    for (picture, label), image, expected in zip(folder, data.images, data.labels, strict=True):
        assert label == expected
        assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), image.numpy())
    names = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [names[name] for name in folder.classes] == NAMES


def set_of(folder: Path, names: list[str]) -> Path:
    """One image of each class."""
    images = torch.arange(len(names), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).contiguous()
    return DistilledSet(images, torch.arange(len(names)), names, {"method": "clp", "dataset": "d"}).save(folder)


def test_folders_bear_the_names_of_the_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    names = ["Blüte", "coffee cup", "rock 'n' roll, 50 % off", "ελιά"]
    out = export(set_of(tmp_path / "set", names), "folder", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == names
    assert caplog.text == ""
    read = open_source(DatasetSettings(name="folder", train=str(out)), Path(), BadImages(skip=False))
    assert read.class_names == names


def test_names_that_no_folder_can_bear_are_changed_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    out = export(set_of(tmp_path / "set", ["and/or", "cup", "Zebra"]), "folder", tmp_path / "out")
    assert json.loads((out / "classes.json").read_text()) == {
        "000-and or": "and/or",
        "001-cup": "cup",
        "002-Zebra": "Zebra",
    }
    assert "folders of 3 of 3 classes have other names, e.g. 'and/or' is in '000-and or': their labels" in caplog.text
    dotted = export(set_of(tmp_path / "dotted", ["x", "x.", "x. "]), "folder", tmp_path / "three")
    assert json.loads((dotted / "classes.json").read_text()) == {"000-x": "x", "001-x. (2)": "x.", "002-x.  (2)": "x. "}
    export(set_of(tmp_path / "other", ["a/b", "c"]), "folder", tmp_path / "two")
    assert "folders of 1 of 2 classes have other names, e.g. 'a/b' is in 'a b': a folder cannot" in caplog.text


@given(st.lists(st.text(min_size=1, max_size=300).filter(lambda name: name.isprintable()), unique=True, max_size=12))
def test_any_names_become_folders_that_differ_and_keep_their_order(names: list[str]) -> None:
    found = folder_names(names)
    assert sorted(found) == found
    assert len({unicodedata.normalize("NFC", folder.casefold()) for folder in found}) == len(names)
    for folder in found:
        assert "/" not in folder
        assert not is_clutter(folder)
        assert len(folder.encode()) <= 255


def test_huggingface_opens_with_datasets(source: Path, tmp_path: Path) -> None:
    target = export(source, "huggingface", tmp_path / "out")
    opened = datasets.load_dataset(str(target), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.features["label"].names == NAMES
    assert opened["label"] == [0, 0, 1, 1, 2, 2]
    data = DistilledSet.load(source)
    assert np.array_equal(np.asarray(opened[3]["image"]).transpose(2, 0, 1), data.images[3].numpy())


def test_webdataset_holds_whole_samples_side_by_side(source: Path, tmp_path: Path) -> None:
    data = DistilledSet.load(source)
    with tarfile.open(export(source, "webdataset", tmp_path / "out.tar")) as tar:
        names = tar.getnames()
        assert len(names) == 18
        assert not any("/" in name or ".." in name for name in names)
        for i in range(6):
            cls, facts, png = names[3 * i : 3 * i + 3]
            assert len({name.rsplit(".", 1)[0] for name in (cls, facts, png)}) == 1
            label = int(tar.extractfile(cls).read())  # type: ignore[union-attr]
            assert label == data.labels[i]
            assert json.load(tar.extractfile(facts))["class"] == NAMES[label]  # type: ignore[arg-type]
            with Image.open(tar.extractfile(png)) as picture:  # type: ignore[arg-type]
                assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), data.images[i].numpy())


def test_safetensors_hold_the_tensors(source: Path, tmp_path: Path) -> None:
    tensors, data = load_file(export(source, "safetensors", tmp_path / "out.safetensors")), DistilledSet.load(source)
    assert torch.equal(tensors["images"], data.images)
    assert torch.equal(tensors["labels"], data.labels)


def random_set(folder: Path) -> Path:
    """Two images of each class in three independent draws; an image's pixels are 10 times its row."""
    images = torch.arange(18, dtype=torch.uint8).mul(10).view(18, 1, 1, 1).expand(18, 3, 8, 8).contiguous()
    labels, draw = torch.tensor([0, 0, 1, 1, 2, 2]).repeat(3), torch.arange(3).repeat_interleave(6)
    return DistilledSet(images, labels, NAMES, {"method": "random", "dataset": "d"}, draw=draw).save(folder)


@pytest.mark.parametrize("draw", [0, 2])
def test_one_draw_is_exported_of_a_set_of_several(tmp_path: Path, draw: int) -> None:
    source = random_set(tmp_path / "set")
    wanted = [10 * row for row in range(6 * draw, 6 * draw + 6)]
    out = {form: export(source, form, tmp_path / form, draw) for form in FORMATS}
    pictures = [np.asarray(picture)[0, 0, 0] for picture, _ in ImageFolder(out["folder"])]
    assert pictures == wanted
    tensors = load_file(out["safetensors"])
    assert tensors["images"][:, 0, 0, 0].tolist() == wanted
    assert tensors["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    with tarfile.open(out["webdataset"]) as tar:
        facts = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    assert [(f["label"], f["draw"], f["draws"]) for f in facts] == [(k, draw, 3) for k in (0, 0, 1, 1, 2, 2)]
    table = datasets.load_dataset(str(out["huggingface"]), split="train", cache_dir=str(tmp_path / "cache"))
    assert [np.asarray(row["image"])[0, 0, 0] for row in table] == wanted
    assert table["draw"] == [draw] * 6
    told = (out["huggingface"] / "README.md").read_text()
    assert "6 images, 3 classes" in told
    assert f"This is draw {draw} of 3 independent ones, 0 to 2." in told


def test_a_set_of_several_draws_keeps_them_apart_and_says_so(tmp_path: Path) -> None:
    source = random_set(tmp_path / "set")
    for number in range(3):
        folder = ImageFolder(source / "images" / f"draw-{number}")
        assert [np.asarray(picture)[0, 0, 0] for picture, _ in folder] == [
            10 * r for r in range(6 * number, 6 * number + 6)
        ]
    assert "3 independent draws of 6 images each" in (source / "README.md").read_text()
    loaded = DistilledSet.load(source)
    assert [draw.images[:, 0, 0, 0].tolist() for draw in loaded.draws] == [
        [10 * r for r in range(6 * k, 6 * k + 6)] for k in range(3)
    ]
    with pytest.raises(SettingsError, match="has no draw 3: it holds draws 0 to 2"):
        export(source, "folder", tmp_path / "out", 3)


def test_a_set_of_one_draw_has_none_but_the_first(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no draw 1: it holds one draw, number 0"):
        export(source, "folder", tmp_path / "out", 1)
    assert "draw" not in (source / "README.md").read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_set_gives_the_same_bytes_and_nothing_is_overwritten(source: Path, tmp_path: Path, form: str) -> None:
    one, two = export(source, form, tmp_path / "one"), export(source, form, tmp_path / "two")
    assert sha256_tree(one) == sha256_tree(two)
    with pytest.raises(ResourceError, match="exists already"):
        export(source, form, one)


@pytest.mark.parametrize("form", FORMATS)
def test_what_fails_in_the_middle_leaves_nothing(
    source: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(data: DistilledSet, source: Path, staging: Path) -> None:
        write_whole(data, source, staging)
        raise KeyboardInterrupt

    write_whole = FORMATS[form]
    monkeypatch.setitem(FORMATS, form, interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(source, form, tmp_path / "out" / "it")
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    (tmp_path / "out" / ".clpdd-tmp-999999999-it").mkdir()  # of a run that was killed
    assert [path.name for path in (export(source, form, tmp_path / "out" / "it").parent).iterdir()] == ["it"]
    with pytest.raises(ResourceError, match="out/it/below"):
        export(source, form, source / "data.parquet" / "out" / "it" / "below")


def test_a_folder_that_is_no_set_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no distilled dataset"):
        export(tmp_path, "folder", tmp_path / "out")


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    none = DistilledSet(
        torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), NAMES, {"method": "full"}
    )
    with pytest.raises(ArtifactError, match="nothing to export"):
        export(none.save(tmp_path / "full"), "folder", tmp_path / "out")
