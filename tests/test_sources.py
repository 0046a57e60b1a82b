"""Parquet files and image folders as they really come: good, odd and broken ones."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clpdd.config import DatasetSettings, SplitLimits
from clpdd.datasets import Index, build_index
from clpdd.errors import DataError
from clpdd.files import read_json
from clpdd.layout import SPLITS

Row = dict[str, Any] | bytes | None


def png(value: int, side: int = 3) -> bytes:
    """A PNG of its own for every ``value`` below 65536."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (value % 256, value // 256, 99)).save(stream, "PNG")
    return stream.getvalue()


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


def pixel(index: Index, row: int) -> int:
    """The ``value`` that ``png`` was called with."""
    red, green, _ = index.image(row).getpixel((0, 0))  # type: ignore[misc]
    return int(red + 256 * green)


# -- Parquet -----------------------------------------------------------------------------------------------------------


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
        ([0, 1] * 9 + [0, 10**12], {}, "labels run to 1000000000000, but only 3 of them occur.* 2 is the first"),
        ([0, 2] * 10, {}, "1 is the first that does not"),
        ([0, 1] * 9 + [0, 5], {"class_names": ["a", "b"]}, "is 5, but 0 to 1 is allowed"),
        ([0, 1] * 10, {"class_names": ["a", "b", "c"]}, r"1 of 3 classes have no image.*'c' \(label 2\)"),
        ([0.0, 1.0] * 10, {}, "holds double, but labels must be integers"),
        (["cat", "dog"] * 10, {}, "holds string, but labels must be integers"),
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


# -- image folders -----------------------------------------------------------------------------------------------------


def fill(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png(start))
            start += 1
    return root


def folder(tmp_path: Path, **options: Any) -> dict[str, Index]:
    chosen = DatasetSettings(name="folder", **({"train": "images"} | options))
    paths = build_index(chosen, 0, tmp_path / "out/index", base=tmp_path)
    return {split: Index.open(path) for split, path in paths.items()}


def test_one_root_is_split(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"dog": 20, "cat": 10})
    indexes = folder(tmp_path)
    for index in indexes.values():
        assert index.class_names == ["cat", "dog"]
        for row, name in enumerate(index.ids):
            assert name.startswith(index.class_names[index.labels[row]] + "/")
            assert index.encoded(row) == (tmp_path / "images" / name).read_bytes()
    assert [len(indexes[split]) for split in SPLITS] == [21, 3, 6]


def test_three_roots_nested_files_odd_names_and_wrong_extensions(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"cat": 2, "dog": 2})
    fill(tmp_path / "b", {"cat": 1, "dog": 1}, 100)
    fill(tmp_path / "c", {"cat": 1, "dog": 0}, 200)
    (tmp_path / "a/cat/deep/er").mkdir(parents=True)
    (tmp_path / "a/cat/deep/er/née ü.JPG").write_bytes(png(300))  # a PNG, whatever it is called
    (tmp_path / "a/cat/no-extension").write_bytes(png(301))
    for clutter in (".DS_Store", "Thumbs.db", ".hidden.png"):
        (tmp_path / "a/cat" / clutter).write_text("clutter")
    (tmp_path / "a/README.md").write_text("about")
    indexes = folder(tmp_path, train="a", validation="b", test="c")
    assert indexes["train"].ids == [
        "cat/0.png",
        "cat/1.png",
        "cat/deep/er/née ü.JPG",
        "cat/no-extension",
        "dog/0.png",
        "dog/1.png",
    ]
    assert indexes["test"].labels.tolist() == [0]


def test_several_roots_make_one_split(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"cat": 10, "dog": 10})
    fill(tmp_path / "b", {"cat": 10, "emu": 10}, 100)
    indexes = folder(tmp_path, train=["a", "b"])
    ids = [name for index in indexes.values() for name in index.ids]
    assert len(set(ids)) == 40
    assert {"0/cat/3.png", "1/cat/3.png", "1/emu/3.png"} <= set(ids)


def test_class_names_order_or_rename_the_folders(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"n01": 10, "n02": 10})
    renamed = folder(tmp_path, class_names=["tench", "goldfish"])["train"]
    assert renamed.class_names[renamed.labels[renamed.ids.index(renamed.ids[0])]] == "tench"
    ordered = folder(tmp_path, class_names=["n02", "n01"])["train"]
    assert all(name.startswith(ordered.class_names[ordered.labels[row]]) for row, name in enumerate(ordered.ids))
    for names in (["n01", "goldfish"], ["a", "b", "c"], ["n01"]):
        with pytest.raises(DataError, match=r"dataset\.class_names has"):
            folder(tmp_path, class_names=names)


def test_a_root_one_level_too_high_is_explained(tmp_path: Path) -> None:
    fill(tmp_path / "images/train", {"cat": 4, "dog": 4})
    fill(tmp_path / "images/val", {"cat": 4, "dog": 4}, 100)
    with pytest.raises(DataError, match=r"holds the folders train, val, which look like splits.*images/train"):
        folder(tmp_path)
    fill(tmp_path / "wrapped/images", {"cat": 4, "dog": 4}, 200)
    with pytest.raises(DataError, match="single folder, images, and that holds folders"):
        folder(tmp_path, train="wrapped")


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"test": 10, "train": 10})
    assert folder(tmp_path)["train"].class_names == ["test", "train"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "imges"}, r"imges does not exist; did you mean images\?"),
        ({"train": "archive.zip"}, "is a file.*unpack"),
        ({"train": []}, "empty list"),
        ({"train": "hollow"}, "holds no class folder"),
        ({"train": "gap"}, "class folder 'b' in .* holds no image"),
        ({"train": "single"}, "one class only"),
        ({"train": "few"}, "'b' has 2, but 3 are needed"),
        ({"test": "images"}, "counted twice"),
        ({"test": "images/cat"}, "counted twice"),
        ({"test": "other"}, r"class folder 'cats' in .*other is not among the 2.*did you mean cat\?"),
        ({"train": "flat"}, "lies beside the class folders"),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    fill(tmp_path / "images", {"cat": 5, "dog": 5})
    fill(tmp_path / "other", {"cats": 2}, 100)
    fill(tmp_path / "gap", {"a": 5, "b": 0})
    fill(tmp_path / "few", {"a": 5, "b": 2})
    fill(tmp_path / "single", {"a": 5})
    fill(tmp_path / "flat", {"a": 5, "b": 5})
    (tmp_path / "flat/0.png").write_bytes(png(0))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=said):
        folder(tmp_path, **options)


def odd_folder(tmp_path: Path) -> Path:
    root = fill(tmp_path / "images", {"cat": 20, "dog": 20})
    outside = fill(tmp_path / "outside", {"x": 1}, 500) / "x"
    cat = root / "cat"
    (cat / "outside.png").symlink_to(outside / "0.png")
    (cat / "folder").symlink_to(outside)
    (cat / "up").symlink_to(root)
    (cat / "loop.png").symlink_to("loop.png")
    (cat / "dangling.png").symlink_to("absent.png")
    (cat / "inside.png").symlink_to("../dog/3.png")
    (root / "linked-class").symlink_to(outside)
    (cat / "zero.png").touch()
    (cat / "cut.png").write_bytes(png(77)[:-30])
    (cat / "notes.txt").write_text("not an image")
    os.mkfifo(cat / "pipe.png")
    (Path(os.fsdecode(os.fsencode(cat) + b"/\xff.png"))).write_bytes(png(600))
    return root


def test_odd_entries_are_skipped_with_their_reasons(tmp_path: Path) -> None:
    odd_folder(tmp_path)
    with pytest.raises(DataError, match=r"images/.*: the image .*bad_images: skip"):
        folder(tmp_path)
    indexes = folder(tmp_path, bad_images="skip", duplicates="allow")
    reasons = {item["id"]: item["reason"] for item in read_json(tmp_path / "out/index/summary.json")["skipped"]}
    expected = {
        "cat/outside.png": "leaves the image folder",
        "cat/folder": "link to a folder",
        "cat/up": "link to a folder",
        "cat/loop.png": "leads nowhere or to itself",
        "cat/dangling.png": "leads nowhere",
        "linked-class": "link to a folder",
        "cat/zero.png": "empty",
        "cat/cut.png": "PNG",
        "cat/notes.txt": "none of the formats",
        "cat/pipe.png": "regular file",
        "cat/\\udcff.png": "not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name]
        assert str(tmp_path) not in reasons[name]
    names = {name for index in indexes.values() for name in index.ids}
    assert len(names) == 41
    assert "cat/inside.png" in names


def test_class_folders_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"cat": 5})
    fill(Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/\xe9t\xe9")), {"inner": 0})
    with pytest.raises(DataError, match="not UTF-8: rename it"):
        folder(tmp_path)


def test_one_name_in_two_unicode_forms_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"caf\u00e9": 4, "cafe\u0301": 4})
    with pytest.raises(DataError, match="Unicode forms"):
        folder(tmp_path)


def test_a_named_pipe_never_blocks_and_unreadable_folders_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", {"cat": 5, "dog": 5})
    os.mkfifo(root / "cat" / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        folder(tmp_path, validation_fraction=0.01, test_fraction=0.01)
    if os.geteuid() != 0:
        (root / "cat").chmod(0)
        try:
            with pytest.raises(DataError, match="permission denied"):
                folder(tmp_path)
        finally:
            (root / "cat").chmod(0o755)
