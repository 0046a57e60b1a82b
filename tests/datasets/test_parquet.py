"""Parquet files as they really come: good, odd and broken ones."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clpdd.config.dataset import DatasetSettings, SplitLimits
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.errors import DataError
from clpdd.storage.files import read_json
from clpdd.storage.layout import SPLITS

from .pictures import pixel, png

Row = dict[str, Any] | bytes | None


def structs(count: int, start: int = 0) -> list[Row]:
    return [{"bytes": png(start + k), "path": f"{k}.png"} for k in range(count)]


def write_parquet(
    path: Path,
    images: list[Row],
    labels: Any,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
) -> Path:
    plain = all(image is None or isinstance(image, bytes) for image in images)
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    values = labels if isinstance(labels, pa.Array) else pa.array(labels)
    table = pa.table({columns[0]: pa.array(images, kind), columns[1]: values})
    if names is not None:
        features = {"features": {columns[1]: {"names": names, "_type": "ClassLabel"}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=7)
    return path


def parquet(tmp_path: Path, seed: int = 0, **options: Any) -> dict[str, Index]:
    chosen = DatasetSettings(name="parquet", **({"train": "train.parquet"} | options))
    paths = build_index(chosen, seed, tmp_path / "out/index", base=tmp_path)
    return {split: Index.open(path) for split, path in paths.items()}


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_rows_keep_their_images_and_labels(tmp_path: Path, plain: bool) -> None:
    images: list[Row] = [png(k) for k in range(40)] if plain else structs(40)
    write_parquet(tmp_path / "train.parquet", images, [k % 4 for k in range(40)])
    indexes = parquet(tmp_path)
    seen = []
    for index in indexes.values():
        assert index.class_names == ["0", "1", "2", "3"]
        for row, name in enumerate(index.ids):
            assert name == f"train-{pixel(index, row):06d}"
            assert index.labels[row] == pixel(index, row) % 4
            seen.append(name)
    assert sorted(seen) == [f"train-{k:06d}" for k in range(40)]


def test_files_globs_and_given_splits(tmp_path: Path) -> None:
    for part in range(3):
        start = 100 * part
        write_parquet(
            tmp_path / f"data/train-{part}.parquet", structs(10, start), [k % 2 for k in range(10)], ["no", "yes"]
        )
    write_parquet(tmp_path / "data/held-out.parquet", structs(10, 300), [k % 2 for k in range(10)], ["no", "yes"])
    indexes = parquet(
        tmp_path, train=["data/train-[01].parquet", "data/train-2.parquet"], validation="data/held-*.parquet"
    )
    assert [len(indexes[split]) for split in SPLITS] == [24, 10, 6]
    assert indexes["train"].class_names == ["no", "yes"]
    assert {pixel(indexes["validation"], row) for row in range(10)} == set(range(300, 310))
    rest = {pixel(index, row) for split, index in indexes.items() if split != "validation" for row in range(len(index))}
    assert rest == {100 * part + k for part in range(3) for k in range(10)}


def test_columns_and_class_names_may_be_named(tmp_path: Path) -> None:
    labels = pa.array([k % 2 for k in range(20)], pa.uint8())
    write_parquet(tmp_path / "train.parquet", structs(20), labels, ["a", "b"], columns=("img", "fine"))
    indexes = parquet(tmp_path, image_column="img", label_column="fine")
    assert indexes["test"].class_names == ["a", "b"]
    indexes = parquet(tmp_path, image_column="img", label_column="fine", class_names=["x", "y"])
    assert indexes["test"].class_names == ["x", "y"]


def test_limits_hold_per_class_and_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(100), [k % 2 for k in range(100)])
    indexes = parquet(tmp_path, max_per_class=SplitLimits(train=5, test=3))
    assert np.bincount(indexes["train"].labels).tolist() == [5, 5]
    assert np.bincount(indexes["test"].labels).tolist() == [3, 3]
    assert [pixel(indexes["train"], row) for row in range(10)] != list(range(10))


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([0, 1] * 9 + [0, -1], {}, r"train\.parquet, row 19 .*'label' is -1, but 0 to 1 is allowed.*published without"),
        ([0, 1] * 9 + [0, None], {}, r"row 19 .*'label' is null"),
        ([0, 1] * 9 + [0, 10**12], {}, "'1000000000000' has 1, but 3 are needed"),
        (
            [0, 2] * 10,
            {"class_names": ["a", "b", "c"]},
            r"1 of 3 classes have no image.*'b' \(label 1\).*empty_classes: drop",
        ),
        ([0, 1] * 9 + [0, 5], {"class_names": ["a", "b"]}, "is 5, but 0 to 1 is allowed"),
        ([0, 1] * 10, {"class_names": ["a", "b", "c"]}, r"1 of 3 classes have no image.*'c' \(label 2\)"),
        ([0.0, 0.5] * 10, {}, "'label' holds labels that are no whole numbers"),
        ([0.0, float("nan")] * 10, {}, "'label' holds labels that are no whole numbers"),
        ([[0], [1]] * 10, {}, r"'label' holds list.*but labels must be integers or words"),
        (["cat", "dog"] * 9 + ["cat", None], {}, r"row 19 .*'label' is null"),
        (["cat", "dog"] * 9 + ["cat", " "], {}, "a name must hold a visible sign"),
        (["cat", "dog"] * 10, {"class_names": ["cat", "cow"]}, "'dog' is only in one of them"),
        ([0] * 20, {}, "one class only"),
        ([0] * 19 + [1], {}, "'1' has 1, but 3 are needed"),
        (pa.array([0] * 19 + [2**64 - 1], pa.uint64()), {}, "beyond 64-bit"),
        ([], {}, "no classes"),
    ],
)
def test_unusable_labels_are_named(tmp_path: Path, labels: Any, options: dict[str, Any], said: str) -> None:
    values = labels if len(labels) else pa.array([], pa.int64())
    write_parquet(tmp_path / "train.parquet", structs(len(values)), values)
    with pytest.raises(DataError, match=said):
        parquet(tmp_path, **options)
    assert not (tmp_path / "out/index").exists()


def test_missing_columns_are_answered_with_those_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(20), [0, 1] * 10, columns=("image", "labels"))
    with pytest.raises(DataError, match=r"no column 'label' .*its columns: image, labels; did you mean labels\?"):
        parquet(tmp_path)
    table = pa.table({"image": [[1, 2]] * 4, "label": [0, 1, 0, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"holds list.*but images must be struct"):
        parquet(tmp_path)
    twice = pa.Table.from_arrays([pa.array([b""]), pa.array([b""]), pa.array([0])], ["image", "image", "label"])
    pq.write_table(twice, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="2 columns named 'image'"):
        parquet(tmp_path)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ("nothing-*.parquet", r"dataset\.train: no file matches .*nothing-\*\.parquet"),
        ("trane.parquet", r"no file matches .*did you mean train\.parquet\?"),
        (".", "is a folder: name the files in it"),
        ([], "is an empty list"),
        ("hf://datasets/cifar10/train.parquet", "is an address"),
        ("***.parquet", "is not a glob|no file matches"),
        ("text.parquet", "not a whole Parquet file"),
        ("empty.parquet", "not a whole Parquet file"),
        ("cut.parquet", "not a whole Parquet file"),
        ("pointer.parquet", "git lfs pull"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, train: str | list[str], said: str) -> None:
    whole = write_parquet(tmp_path / "train.parquet", structs(20), [0, 1] * 10).read_bytes()
    (tmp_path / "text.parquet").write_text("image,label\n" * 30)
    (tmp_path / "empty.parquet").touch()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pointer.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(DataError, match=said):
        parquet(tmp_path, train=train)


def test_damaged_pages_are_data_errors_or_bad_images(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "train.parquet", structs(40), [0, 1] * 20).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(whole)
        for place in generator.integers(len(damaged), size=5):
            damaged[place] = int(generator.integers(256))
        (tmp_path / "train.parquet").write_bytes(damaged)
        with contextlib.suppress(DataError):  # and nothing else
            parquet(tmp_path, bad_images="skip")


def test_one_file_serves_one_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(20), [0, 1] * 10)
    with pytest.raises(DataError, match=r"both dataset\.train and dataset\.test"):
        parquet(tmp_path, test="tr*.parquet")


def test_splits_that_number_their_classes_differently_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(20), [0, 1] * 10, ["cat", "dog"])
    write_parquet(tmp_path / "test.parquet", structs(20, 50), [0, 1] * 10, ["dog", "cat"])
    with pytest.raises(DataError, match="other class names"):
        parquet(tmp_path, test="test.parquet")


@pytest.mark.parametrize("names", [["same", "same"], ["a", ""], ["a", 3], "ab", ["a", "\ud800"]])
def test_unusable_names_in_the_metadata_are_refused(tmp_path: Path, names: Any) -> None:
    write_parquet(tmp_path / "train.parquet", structs(20), [0, 1] * 10, names)
    with pytest.raises(DataError, match="Hugging Face metadata"):
        parquet(tmp_path)


def test_bad_rows_stop_the_index_or_are_listed(tmp_path: Path) -> None:
    images = structs(60)
    bad: dict[int, Row] = {
        3: None,
        10: {"bytes": None, "path": None},
        17: {"bytes": b"", "path": "x.png"},
        24: {"bytes": png(24)[:40], "path": "x.png"},
        31: {"bytes": None, "path": "../outside.png"},
        32: {"bytes": None, "path": str(tmp_path / "outside.png")},
        33: {"bytes": None, "path": "data/../../outside.png"},
        34: {"bytes": None, "path": "link.png"},
        35: {"bytes": None, "path": "loop.png"},
        36: {"bytes": None, "path": "absent.png"},
        37: {"bytes": None, "path": "pipe.png"},
        38: {"bytes": None, "path": "http://example.org/x.png"},
    }
    for row, image in bad.items():
        images[row] = image
    images[50] = {"bytes": None, "path": "beside.png"}
    (tmp_path / "outside.png").write_bytes(png(999))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/beside.png").write_bytes(png(50))
    (tmp_path / "data/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "data/loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "data/pipe.png")
    write_parquet(tmp_path / "data/train.parquet", images, [k % 2 for k in range(60)])
    with pytest.raises(DataError, match=r"train\.parquet, row \d+ \(counted from 0\): the image .*bad_images: skip"):
        parquet(tmp_path, train="data/train.parquet")
    indexes = parquet(tmp_path, train="data/train.parquet", bad_images="skip")
    found = {pixel(index, row) for index in indexes.values() for row in range(len(index))}
    assert found == set(range(60)) - set(bad)
    skipped = read_json(tmp_path / "out/index/summary.json")["skipped"]
    assert {item["id"] for item in skipped} == {f"train-{row:06d}" for row in bad}
    reasons = {int(item["id"][-6:]): item["reason"] for item in skipped}
    assert all("leaves the folder" in reasons[row] for row in (31, 33, 34, 38))
    assert "null" in reasons[3]
    assert "regular" in reasons[37]
