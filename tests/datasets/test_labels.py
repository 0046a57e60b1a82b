"""Labels as tables really hold them: words, truth values, whole numbers of any type, numbers that are left out."""

from __future__ import annotations

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from clpdd.datasets.index import Index
from clpdd.errors import DataError

from ..versions import need_views
from .pictures import pixel
from .test_folder import fill, folder
from .test_parquet import parquet, structs, write_parquet


def label_of_picture(indexes: dict[str, Index]) -> dict[int, str]:
    """The name of the class of every picture by its number."""
    return {
        pixel(index, row): index.class_names[index.labels[row]]
        for index in indexes.values()
        for row in range(len(index))
    }


WORDS = ["dog", "cat", "eel"]

KINDS: dict[str, Any] = {
    "string": pa.array(WORDS * 8),
    "large_string": pa.array(WORDS * 8, pa.large_string()),
    "string_view": pa.array(WORDS * 8, pa.string_view()),
    "dictionary": pa.array(WORDS * 8).dictionary_encode(),
    "dictionary of small indices": pa.array(WORDS * 8).cast(pa.dictionary(pa.int8(), pa.string())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_classes_in_sorted_order(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    if "view" in kind:
        need_views()
    write_parquet(tmp_path / "train.parquet", structs(24), KINDS[kind])
    with caplog.at_level(logging.INFO):
        indexes = parquet(tmp_path)
    assert indexes["train"].class_names == ["cat", "dog", "eel"]
    assert label_of_picture(indexes) == {k: WORDS[k % 3] for k in range(24)}
    assert "holds words: 'cat' = 0, 'dog' = 1, 'eel' = 2 are the classes" in caplog.text


def test_class_names_put_words_in_another_order_or_rename_them(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), KINDS["string"])
    ordered = parquet(tmp_path, class_names=["eel", "dog", "cat"])
    assert ordered["train"].class_names == ["eel", "dog", "cat"]
    assert label_of_picture(ordered) == {k: WORDS[k % 3] for k in range(24)}
    renamed = parquet(tmp_path, class_names=["Katze", "Hund", "Aal"])
    assert label_of_picture(renamed) == {k: ["Hund", "Katze", "Aal"][k % 3] for k in range(24)}


def test_words_mean_the_same_in_every_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), pa.array(WORDS * 8).dictionary_encode())
    write_parquet(tmp_path / "test.parquet", structs(4, 100), pa.array(["eel", "dog"] * 2).dictionary_encode())
    indexes = parquet(tmp_path, test="test.parquet")
    assert indexes["test"].labels.tolist() == [2, 1, 2, 1]
    write_parquet(tmp_path / "test.parquet", structs(4, 100), ["eel", "dgo", "eel", "eel"])
    with pytest.raises(DataError, match=r"test\.parquet, row 1 .*'dgo', which no training image has; did you mean dog"):
        parquet(tmp_path, test="test.parquet")
    write_parquet(tmp_path / "test.parquet", structs(4, 100), [0, 1, 0, 1])
    with pytest.raises(DataError, match=r"holds words in .*train\.parquet and integers in .*test\.parquet"):
        parquet(tmp_path, test="test.parquet")


NUMBERS: dict[str, Any] = {
    "double": pa.array([0.0, 1.0] * 12),
    "float": pa.array([0.0, 1.0] * 12, pa.float32()),
    "decimal": pa.array([Decimal(0), Decimal(1)] * 12, pa.decimal128(38, 0)),
    "uint8": pa.array([0, 1] * 12, pa.uint8()),
    "dictionary of integers": pa.array([0, 1] * 12).dictionary_encode(),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_whole_numbers_are_labels_whatever_their_type(tmp_path: Path, kind: str) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), NUMBERS[kind])
    indexes = parquet(tmp_path)
    assert indexes["train"].class_names == ["0", "1"]
    assert label_of_picture(indexes) == {k: str(k % 2) for k in range(24)}


def test_truth_values_are_the_classes_false_and_true(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), [k % 2 == 0 for k in range(24)])
    indexes = parquet(tmp_path)
    assert indexes["train"].class_names == ["false", "true"]
    assert label_of_picture(indexes) == {k: ["true", "false"][k % 2] for k in range(24)}


@pytest.mark.parametrize("numbers", [[1, 2, 3], [0, 2, 7], [10, 20, 10**12]])
def test_numbers_that_are_left_out_are_closed_up_and_it_is_said(
    tmp_path: Path, numbers: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), [numbers[k % 3] for k in range(24)])
    indexes = parquet(tmp_path)
    assert indexes["train"].class_names == [str(number) for number in numbers]
    assert label_of_picture(indexes) == {k: str(numbers[k % 3]) for k in range(24)}
    told = ", ".join(map(str, numbers))
    assert f"leaves numbers out: {told} are taken as the classes 0 to 2, and called by their numbers" in caplog.text
    named = parquet(tmp_path, class_names=["a", "b", "c"]) if numbers[-1] >= 3 else indexes
    if numbers[-1] >= 3:
        assert label_of_picture(named) == {k: "abc"[k % 3] for k in range(24)}


def test_a_number_of_another_split_that_training_images_lack_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), [1, 3] * 12)
    for label, said in ((2, "is 2, which no training image has"), (-1, "is -1, .*published without labels")):
        write_parquet(tmp_path / "test.parquet", structs(4, 100), [1, 3, label, 1])
        with pytest.raises(DataError, match=rf"test\.parquet, row 2 .*{said}"):
            parquet(tmp_path, test="test.parquet")


def test_a_class_without_any_image_is_left_out_when_the_setting_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(tmp_path / "train.parquet", structs(24), [0, 2] * 12, ["cat", "fox", "eel"])
    with pytest.raises(DataError, match=r"'fox' \(label 1\).*dataset\.empty_classes: drop"):
        parquet(tmp_path)
    indexes = parquet(tmp_path, empty_classes="drop")
    assert indexes["train"].class_names == ["cat", "eel"]
    assert label_of_picture(indexes) == {k: ["cat", "eel"][k % 2] for k in range(24)}
    assert "classes without any image, left out: 1, e.g. fox" in caplog.text
    write_parquet(tmp_path / "test.parquet", structs(4, 100), [0, 1, 2, 0], ["cat", "fox", "eel"])
    with pytest.raises(DataError, match="'fox'"):  # a test image is of that class: it cannot be left out
        parquet(tmp_path, test="test.parquet", empty_classes="drop")


def test_an_empty_class_folder_is_left_out_when_the_setting_says_so(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"ant": 5, "bee": 0, "cow": 5})
    with pytest.raises(DataError, match=r"'bee' .*holds no image.*dataset\.empty_classes: drop"):
        folder(tmp_path)
    indexes = folder(tmp_path, empty_classes="drop")
    assert indexes["train"].class_names == ["ant", "cow"]
    assert np.bincount(indexes["train"].labels).tolist() == [3, 3]


def image_columns() -> dict[str, pa.Array]:
    rows = [row["bytes"] for row in structs(150)]  # type: ignore[index,call-overload]  # more than a batch
    held = [{"bytes": data, "path": None} for data in rows]

    def struct(data: pa.DataType, path: pa.DataType) -> pa.Array:
        return pa.array(held, pa.struct([("bytes", data), ("path", path)]))

    return {
        "large_binary": pa.array(rows, pa.large_binary()),
        "binary_view": pa.array(rows, pa.binary_view()),
        "dictionary": pa.array(rows, pa.binary()).dictionary_encode(),
        "list<uint8>": pa.array([list(data) for data in rows], pa.list_(pa.uint8())),
        "large_list<uint8>": pa.array([list(data) for data in rows], pa.large_list(pa.uint8())),
        "struct of large types": struct(pa.large_binary(), pa.large_string()),
        "struct of view types": struct(pa.binary_view(), pa.string_view()),
        "struct without a path": pa.array([{"bytes": data} for data in rows], pa.struct([("bytes", pa.binary())])),
        "struct whose path is of no type": struct(pa.binary(), pa.null()),
        "struct with a list": struct(pa.list_(pa.uint8()), pa.string()),
    }


@pytest.mark.parametrize("kind", image_columns())
def test_images_are_read_however_arrow_lays_them_out(tmp_path: Path, kind: str) -> None:
    if "view" in kind:
        need_views()
    table = pa.table({"image": image_columns()[kind], "label": [0, 1] * 75})
    pa.parquet.write_table(table, tmp_path / "train.parquet")
    assert label_of_picture(parquet(tmp_path)) == {k: str(k % 2) for k in range(150)}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1, 2]] * 24),
        pa.array(["aGk="] * 24),
        pa.array([{"bytes": None, "path": None}] * 24, pa.struct([("bytes", pa.null()), ("path", pa.null())])),
        pa.array([{"bytes": 1}] * 24),
    ],
)
def test_columns_that_hold_no_bytes_are_refused(tmp_path: Path, column: pa.Array) -> None:
    pa.parquet.write_table(pa.table({"image": column, "label": [0, 1] * 12}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="but images must be struct"):
        parquet(tmp_path)


def test_groups_may_be_words_of_any_type(tmp_path: Path) -> None:
    need_views()
    for groups in (pa.array(["a", "b"] * 12).dictionary_encode(), pa.array(["a", "b"] * 12, pa.string_view())):
        path = write_parquet(tmp_path / "train.parquet", structs(24), [0, 1] * 12)
        pa.parquet.write_table(pa.parquet.read_table(path).append_column("where", groups), path)
        indexes = parquet(tmp_path, group_column="where")
        assert set(indexes["test"].groups or ()) == {"a", "b"}
