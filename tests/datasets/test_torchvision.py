"""``torchvision:NAME``: splits, variants and class names under whichever word torchvision has them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.errors import DataError

ROOT = "root"


def build(tmp_path: Path, name: str, **options: Any) -> dict[str, Index]:
    settings = DatasetSettings(name=name, **({"root": ROOT, "duplicates": "allow"} | options))
    return {split: Index.open(path) for split, path in build_index(settings, 0, tmp_path / "out", tmp_path).items()}


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value, value, value)).save(path)


def value(index: Index, row: int) -> int:
    return int(np.asarray(index.image(row))[3, 3, 0])


def test_oxford_pets_have_a_training_split_called_trainval(tmp_path: Path) -> None:
    home, kinds = tmp_path / ROOT / "oxford-iiit-pet", ["Abyssinian", "american_bulldog", "Birman"]
    rows: dict[str, list[str]] = {"trainval": [], "test": []}
    for label, kind in enumerate(kinds):
        for k in range(10):
            picture(home / f"images/{kind}_{k}.jpg", 20 + 80 * label)
            rows["trainval" if k < 6 else "test"].append(f"{kind}_{k} {label + 1} 1 1")
    (home / "annotations/trimaps").mkdir(parents=True)
    for split, lines in rows.items():
        (home / f"annotations/{split}.txt").write_text("\n".join(lines) + "\n")
    found = build(tmp_path, "torchvision:OxfordIIITPet")
    assert found["train"].class_names == ["Abyssinian", "American Bulldog", "Birman"]
    assert [len(found[split]) for split in ("train", "validation", "test")] == [15, 3, 12]
    for index in found.values():
        assert all(abs(value(index, row) - (20 + 80 * index.labels[row])) < 9 for row in range(len(index)))


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def emnist(root: Path, split: str, labels: list[int]) -> None:
    for part in ("train", "test"):
        numbers = np.repeat(labels, 4)
        raw = root / "EMNIST/raw" / f"emnist-{split}-{part}"
        idx(raw.with_name(f"{raw.name}-images-idx3-ubyte"), numbers[:, None, None] * np.ones((1, 28, 28)) * 4)
        idx(raw.with_name(f"{raw.name}-labels-idx1-ubyte"), numbers)


def test_emnist_comes_in_variants_and_says_which_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    emnist(tmp_path / ROOT, "digits", list(range(10)))
    emnist(tmp_path / ROOT, "balanced", list(range(47)))
    emnist(tmp_path / ROOT, "letters", list(range(1, 27)))
    digits = build(tmp_path, "torchvision:EMNIST/digits")
    assert digits["test"].class_names == list("0123456789")
    assert [value(digits["test"], row) for row in range(40)] == [4 * (row // 4) for row in range(40)]
    letters = build(tmp_path, "torchvision:EMNIST/letters")  # counted from 1 there
    assert letters["test"].class_names == list("abcdefghijklmnopqrstuvwxyz")
    assert letters["test"].labels.tolist() == [row // 4 for row in range(104)]
    assert [value(letters["test"], row) for row in range(104)] == [4 * (row // 4 + 1) for row in range(104)]
    with caplog.at_level(logging.INFO):
        balanced = build(tmp_path, "torchvision:EMNIST")
    assert len(balanced["test"].class_names) == 47
    assert "the variant balanced is taken of balanced, byclass, bymerge, letters, digits, mnist" in caplog.text
    with pytest.raises(DataError, match=r"no variant 'leters'; there are .*torchvision:EMNIST/letters"):
        build(tmp_path, "torchvision:EMNIST/leters")
    with pytest.raises(DataError, match="comes in one variant: leave out /small"):
        build(tmp_path, "torchvision:SUN397/small")


@pytest.mark.parametrize(
    ("name", "folder", "classes", "file"),
    [
        ("Caltech101", "caltech101/101_ObjectCategories", ["accordion", "airplanes", "ant"], "image_{:04d}.jpg"),
        ("Caltech256", "caltech256/256_ObjectCategories", ["001.ak47", "002.american-flag"], "{0:03d}_{0:04d}.jpg"),
    ],
)
def test_class_names_are_found_under_another_word(
    tmp_path: Path, name: str, folder: str, classes: list[str], file: str
) -> None:
    for label, kind in enumerate(classes):
        for k in range(8):
            stem = file.format(k + 1) if name == "Caltech101" else f"{label + 1:03d}_{k + 1:04d}.jpg"
            picture(tmp_path / ROOT / folder / kind / stem, 20 + 80 * label)
    if name == "Caltech101":
        picture(tmp_path / ROOT / folder / "BACKGROUND_Google/image_0001.jpg", 255)
    found = build(tmp_path, f"torchvision:{name}")
    assert found["train"].class_names == classes
    for index in found.values():
        assert all(abs(value(index, row) - (20 + 80 * index.labels[row])) < 9 for row in range(len(index)))


def test_a_variant_of_aircraft_and_of_textures(tmp_path: Path) -> None:
    home = tmp_path / ROOT / "fgvc-aircraft-2013b/data"
    home.mkdir(parents=True)
    for level, names in (("variants", ["707-320", "A300B4"]), ("manufacturers", ["Airbus", "Boeing"])):
        (home / f"{level}.txt").write_text("\n".join(names) + "\n")
    for part, first in (("train", 0), ("val", 8), ("test", 16)):
        rows: dict[str, list[str]] = {"variant": [], "manufacturer": []}
        for k in range(first, first + 8):
            picture(home / f"images/{k:07d}.jpg", 200 * (k % 2))
            rows["variant"].append(f"{k:07d} {['707-320', 'A300B4'][k % 2]}")
            rows["manufacturer"].append(f"{k:07d} {['Boeing', 'Airbus'][k % 2]}")
        for level, lines in rows.items():
            (home / f"images_{level}_{part}.txt").write_text("\n".join(lines) + "\n")
    assert build(tmp_path, "torchvision:FGVCAircraft")["train"].class_names == ["707-320", "A300B4"]
    makers = build(tmp_path, "torchvision:FGVCAircraft/manufacturer")
    assert makers["train"].class_names == ["Airbus", "Boeing"]
    assert all(abs(value(makers["test"], row) - 200 * (1 - makers["test"].labels[row])) < 9 for row in range(8))
    textures = tmp_path / ROOT / "dtd/dtd"
    for part in ("train", "val", "test"):
        for partition in (1, 2):
            lines = [f"{kind}/{kind}_{part}{partition}{k}.jpg" for kind in ("banded", "dotted") for k in range(3)]
            for line in lines:
                picture(textures / "images" / line, 10 * partition)
            (textures / "labels").mkdir(exist_ok=True)
            (textures / f"labels/{part}{partition}.txt").write_text("\n".join(lines) + "\n")
    second = build(tmp_path, "torchvision:DTD/2")
    assert second["train"].class_names == ["banded", "dotted"]
    assert all(abs(value(second["train"], row) - 20) < 9 for row in range(6))
