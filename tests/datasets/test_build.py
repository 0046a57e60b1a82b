"""Digits and arrays to an index: the same bytes anywhere, whole or not at all."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clpdd.config.dataset import DatasetSettings, SplitLimits
from clpdd.datasets.build import build_index, index_arrays
from clpdd.datasets.index import Index
from clpdd.errors import DataError, ResourceError
from clpdd.storage.files import read_json, sha256_bytes, sha256_tree
from clpdd.storage.layout import SPLITS

from .conftest import NAMES, labels, overlapping, pictures


def test_digits_are_indexed_whole_and_without_overlap(digits: Path) -> None:
    from sklearn.datasets import load_digits

    real = load_digits()
    indexes = {split: Index.open(digits / f"{split}.parquet") for split in SPLITS}
    assert [len(indexes[split]) for split in SPLITS] == [1259, 179, 359]
    ids = [name for index in indexes.values() for name in index.ids]
    assert len(set(ids)) == 1797
    for split, index in indexes.items():
        assert (index.split, index.class_names, index.dataset) == (split, [str(k) for k in range(10)], "digits")
        for row in range(0, len(index), 97):
            number = int(index.ids[row].removeprefix("digits-"))
            assert index.labels[row] == real.target[number]
            expected = np.rint(real.images[number] * 255 / 16)
            np.testing.assert_array_equal(np.asarray(index.image(row))[..., 1], expected)
            assert Image.open(io.BytesIO(index.encoded(row))).mode == "L"


def test_digits_summary_counts_what_is_there(digits: Path) -> None:
    summary = read_json(digits / "summary.json")
    for split in SPLITS:
        index = Index.open(digits / f"{split}.parquet")
        assert summary["splits"][split]["images"] == len(index)
        assert list(summary["splits"][split]["classes"].values()) == np.bincount(index.labels).tolist()
    assert summary["skipped"] == []
    assert set(summary["duplicates"]["across_splits"].values()) == {0}


def test_equal_inputs_give_equal_bytes_anywhere(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_index(DatasetSettings(), 0, Path("elsewhere/index"))
    assert sha256_tree(tmp_path / "elsewhere/index") == sha256_tree(digits)
    build_index(DatasetSettings(), 1, Path("elsewhere/index"))
    assert sha256_tree(tmp_path / "elsewhere/index") != sha256_tree(digits)
    assert sorted(p.name for p in (tmp_path / "elsewhere").rglob("*") if p.is_file()) == [
        "summary.json",
        "test.parquet",
        "train.parquet",
        "validation.parquet",
    ]


def test_the_files_are_plain_parquet_with_the_documented_columns(digits: Path) -> None:
    table = pq.read_table(digits / "validation.parquet")
    assert table.column_names == [
        *("id", "bytes", "path", "offset", "length", "label", "group", "split", "width", "height", "sha256")
    ]
    row = table.slice(0, 1).to_pylist()[0]
    assert (row["width"], row["height"], row["path"], row["split"]) == (8, 8, None, "validation")
    assert row["sha256"] == sha256_bytes(row["bytes"])


def test_digits_may_be_renamed(tmp_path: Path) -> None:
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    limits = SplitLimits(train=5, validation=2, test=3)
    paths = build_index(DatasetSettings(class_names=names, max_per_class=limits), 0, tmp_path / "index")
    assert Index.open(paths["train"]).class_names == names
    assert {split: len(Index.open(path)) for split, path in paths.items()} == {
        "train": 50,
        "validation": 20,
        "test": 30,
    }
    with pytest.raises(DataError, match="2 names, but digits has 10 classes"):
        build_index(DatasetSettings(class_names=["a", "b"]), 0, tmp_path / "index")


def test_arrays_round_trip(tmp_path: Path) -> None:
    given = {split: (pictures(12, seed=k), labels(12)) for k, split in enumerate(SPLITS)}
    paths = index_arrays(given, NAMES, tmp_path / "index", name="random")
    for split, path in paths.items():
        index = Index.open(path)
        images, wanted = given[split]
        np.testing.assert_array_equal(index.labels, wanted)
        np.testing.assert_array_equal([np.asarray(index.image(row)) for row in range(12)], images)
        assert index.labels.dtype == np.int64
        assert (index.dataset, index.class_names) == ("random", NAMES)


def test_grey_arrays_and_pil_images_of_any_size_are_taken(tmp_path: Path) -> None:
    grey = pictures(12)[..., 0]
    pil = [Image.fromarray(pictures(1, seed=k, side=2 + k)[0]) for k in range(12)]
    pil[3] = pil[3].convert("CMYK").convert("RGBA")
    given: dict[str, Any] = {
        "train": (grey, labels(12)),
        "validation": (pil, labels(12)),
        "test": (pictures(12, 1), labels(12)),
    }
    paths = index_arrays(given, NAMES, tmp_path / "index")
    np.testing.assert_array_equal(np.asarray(Index.open(paths["train"]).image(5))[..., 2], grey[5])
    assert Index.open(paths["validation"]).image(9).size == (11, 11)


def test_missing_splits_are_taken_from_train(tmp_path: Path) -> None:
    paths = index_arrays({"train": (pictures(60), labels(60))}, NAMES, tmp_path / "index")
    found = {split: Index.open(path).ids for split, path in paths.items()}
    assert {split: len(ids) for split, ids in found.items()} == {"train": 42, "validation": 6, "test": 12}
    assert len({name for ids in found.values() for name in ids}) == 60


@pytest.mark.parametrize(
    ("images", "wanted", "said"),
    [
        (pictures(6) / 255, labels(6), "float64, but uint8"),
        (pictures(6).transpose(0, 3, 1, 2), labels(6), "channels come last"),
        (pictures(6)[..., :2], labels(6), "shape"),
        (pictures(6), labels(5), "6 images do not correspond to 5 labels"),
        (pictures(6), labels(6, classes=4), "row 3: label 3, but 0 to 2 is allowed"),
        (pictures(6), labels(6) - 1, "row 0: label -1"),
        (pictures(6), labels(6).astype(float), "integers"),
        (pictures(6), np.zeros(6, int), "2 of 3 classes have no image among the training images: 'bee'"),
        (pictures(0), labels(0), "3 of 3 classes"),
        (torch.rand(6, 3, 8, 8), labels(6), "float32, but uint8"),
        ([image / 255 for image in pictures(30)], labels(30), "train, row .: images are float64, but uint8"),
    ],
)
def test_unusable_arrays_are_refused(images: Any, wanted: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        index_arrays({"train": (images, wanted)}, NAMES, tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["only"], "one class only"),
        ([], "no classes"),
        (["a", "a", "b"], "two classes are named 'a'"),
        (["a", " ", "b"], "visible"),
        (["a", "b", "\udcff"], "not UTF-8"),
    ],
)
def test_unusable_class_names_are_refused(names: list[str], said: str, tmp_path: Path) -> None:
    classes = max(1, len(names))
    with pytest.raises(DataError, match=said):
        index_arrays({"train": (pictures(30), labels(30, classes))}, names, tmp_path / "index")


def test_tensors_and_lists_of_arrays_are_taken_as_the_array_is(tmp_path: Path) -> None:
    images, wanted = pictures(30), labels(30)
    expected = index_arrays({"train": (images, wanted)}, NAMES, tmp_path / "array")["train"].read_bytes()
    same: dict[str, Any] = {"tensor": torch.from_numpy(images), "list": list(images)}
    for name, value in same.items():
        assert index_arrays({"train": (value, wanted)}, NAMES, tmp_path / name)["train"].read_bytes() == expected


def test_a_split_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train must be a pair \(images, labels\), not ndarray"):
        index_arrays({"train": pictures(30)}, NAMES, tmp_path)  # type: ignore[dict-item]


def test_train_must_be_among_the_splits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold train"):
        index_arrays({"test": (pictures(6), labels(6))}, NAMES, tmp_path)
    with pytest.raises(DataError, match="must hold train"):
        index_arrays({"train": (pictures(6), labels(6)), "dev": (pictures(6), labels(6))}, NAMES, tmp_path)


def test_large_images_are_refused_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = [Image.fromarray(picture) for picture in pictures(30)]
    images[7] = Image.new("RGB", (40, 40))
    limited = DatasetSettings(max_pixels=100)
    with pytest.raises(DataError, match=r"train, row 7: the image is 40 x 40 pixels.*bad_images: skip"):
        index_arrays({"train": (images, labels(30))}, NAMES, tmp_path / "index", settings=limited)
    skipping = limited.model_copy(update={"bad_images": "skip"})
    caplog.clear()
    index_arrays({"train": (images, labels(30))}, NAMES, tmp_path / "index", settings=skipping)
    (skipped,) = read_json(tmp_path / "index/summary.json")["skipped"]
    assert skipped["id"] == "train-000007"
    assert "40 x 40" in skipped["reason"]
    assert "left out as bad: 1, e.g. train-000007, which is 40 x 40 pixels" in caplog.text


def test_an_unwritable_place_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="file"):
        index_arrays({"train": (pictures(30), labels(30))}, NAMES, tmp_path / "file" / "index")


def test_leftovers_of_killed_runs_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".clpdd-tmp-999999999-index", tmp_path / f".clpdd-tmp-{os.getppid()}-index"
    for folder in (dead, alive):
        folder.mkdir()
    index_arrays({"train": (pictures(30), labels(30))}, NAMES, tmp_path / "index")
    assert not dead.exists()
    assert alive.exists()


def test_old_indexes_stay_until_new_ones_are_whole(tmp_path: Path) -> None:
    index_arrays({"train": (pictures(30), labels(30))}, NAMES, tmp_path / "index")
    before = sha256_tree(tmp_path)
    with pytest.raises(DataError):
        index_arrays(overlapping(), NAMES, tmp_path / "index")
    assert sha256_tree(tmp_path) == before


def test_threads_are_gone_afterwards(tmp_path: Path) -> None:
    before = threading.active_count()
    index_arrays({"train": (pictures(30), labels(30))}, NAMES, tmp_path / "index")
    assert threading.active_count() <= before
