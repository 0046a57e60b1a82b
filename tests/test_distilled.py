"""The distilled dataset keeps its pixels, opens elsewhere, and cannot write outside its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clpdd.distilled.classifier import Classifier
from clpdd.distilled.dataset import DistilledSet, grid
from clpdd.errors import ArtifactError
from clpdd.features.store import FeatureStore
from clpdd.stages.distill import distill
from clpdd.storage.files import sha256_tree

from .conftest import World
from .runs import variant


def make(
    classes: int = 3, ipc: int = 2, size: int = 16, names: list[str] | None = None, **more: object
) -> DistilledSet:
    generator = torch.Generator().manual_seed(0)
    n = classes * ipc
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    info = {"method": "clp", "dataset": "toy", "encoder": {"name": "e", "size": size, "dim": 4, "digest": "ab"}}
    labels = torch.arange(classes).repeat_interleave(ipc)
    return DistilledSet(images, labels, names or [f"c{i}" for i in range(classes)], info, **more)  # type: ignore[arg-type]


def test_round_trip_is_lossless(tmp_path: Path) -> None:
    data = make(start=make().images.flip(0), draw=torch.zeros(6, dtype=torch.int64))
    data.save(tmp_path / "set")
    back = DistilledSet.load(tmp_path / "set")
    assert torch.equal(back.images, data.images)
    assert torch.equal(back.labels, data.labels)
    assert back.start is not None
    assert data.start is not None
    assert torch.equal(back.start, data.start)
    assert (back.class_names, back.info) == (data.class_names, data.info)


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    frames = [grid(make().images), grid(make().images.flip(2))]
    for name in ("a", "b"):
        make(frames=frames).save(tmp_path / name)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")


def test_hugging_face_datasets_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    data = make()
    data.save(tmp_path / "set")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "set" / "data.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["label"].names == data.class_names
    assert loaded["label"][:] == data.labels.tolist()
    for row, image in zip(loaded, data.images, strict=True):
        assert np.array_equal(np.asarray(row["image"]), image.permute(1, 2, 0).numpy())


def test_hostile_class_names_stay_inside(tmp_path: Path) -> None:
    names = ["../../climb", "/etc/passwd", "a\0b\n<script>"]
    make(names=names).save(tmp_path / "deep" / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    folders = sorted(p.name for p in (tmp_path / "deep" / "set" / "images").iterdir())
    assert folders == ["000-climb", "001-etc_passwd", "002-a_b_script"]
    assert DistilledSet.load(tmp_path / "deep" / "set").class_names == names


def test_png_files_and_preview_show_the_pixels(tmp_path: Path) -> None:
    data = make()
    data.save(tmp_path)
    first = np.asarray(Image.open(tmp_path / "images" / "000-c0" / "000.png"))
    assert np.array_equal(first, data.images[0].permute(1, 2, 0).numpy())
    assert np.asarray(Image.open(tmp_path / "preview.png")).shape == (1 * 18 + 2, 6 * 18 + 2, 3)


def test_draws_come_apart_again() -> None:
    both = make(ipc=2, draw=torch.tensor([0, 1] * 3))
    parts = both.draws
    assert [len(part) for part in parts] == [3, 3]
    assert torch.equal(parts[1].images, both.images[1::2])


def test_an_empty_set_is_possible(tmp_path: Path) -> None:
    empty = DistilledSet(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ["a", "b"], {})
    empty.save(tmp_path)
    assert len(DistilledSet.load(tmp_path)) == 0


@pytest.mark.parametrize("damage", ["truncate", "foreign", "missing"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    make().save(tmp_path)
    table = tmp_path / "data.parquet"
    if damage == "truncate":
        table.write_bytes(table.read_bytes()[:-40])
    elif damage == "foreign":
        (tmp_path / "distilled.json").write_text("[]")
    else:
        table.unlink()
    with pytest.raises(ArtifactError, match="distil again"):
        DistilledSet.load(tmp_path)


def test_shapes_and_labels_are_checked() -> None:
    with pytest.raises(ArtifactError, match="uint8"):
        DistilledSet(torch.zeros(1, 3, 4, 4), torch.zeros(1, dtype=torch.int64), ["a"], {})
    with pytest.raises(ArtifactError, match="labels"):
        DistilledSet(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.tensor([4]), ["a"], {})


def test_the_full_data_classifier_lies_beside_the_set(world: World, tmp_path: Path) -> None:
    distill(variant("centroid"), **world.inputs(tmp_path))
    classifier = Classifier.load(tmp_path / "set" / "classifier.safetensors")
    classifier.check(world.encoder)
    store = FeatureStore.open(world.layout.features(world.encoder.name, "validation"))
    right = classifier(store.features()).argmax(1) == store.labels
    assert 100 * right.double().mean().item() == pytest.approx(classifier.info["validation_top1"], abs=1e-4)
    assert classifier.info["validation_top1"] > 80
