"""The same image twice, within a split or across splits."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import index_arrays
from clpdd.datasets.index import Index
from clpdd.errors import DataError
from clpdd.storage.files import read_json

from .conftest import NAMES, labels, overlapping, pictures


def test_duplicates_across_splits_are_an_error_by_default(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of the images for validation.*validation-000002 is test-000005 of test"):
        index_arrays(overlapping(), NAMES, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_dropped_duplicates_leave_the_earlier_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = index_arrays(overlapping(), NAMES, tmp_path / "index", settings=DatasetSettings(duplicates="drop"))
    found = {split: Index.open(path) for split, path in paths.items()}
    assert {split: len(index) for split, index in found.items()} == {"train": 10, "validation": 11, "test": 12}
    assert not {"train-000000", "train-000001"} & set(found["train"].ids)
    encoded = {split: {index.encoded(row) for row in range(len(index))} for split, index in found.items()}
    assert not (encoded["train"] & encoded["test"] | encoded["train"] & encoded["validation"])
    duplicates = read_json(tmp_path / "index/summary.json")["duplicates"]
    assert duplicates["across_splits"] == {"train": 2, "validation": 1, "test": 0}
    assert duplicates["within_split"] == {"train": 1, "validation": 0, "test": 0}
    assert "because a later one has them too: 3" in caplog.text


def test_allowed_duplicates_are_counted(tmp_path: Path) -> None:
    paths = index_arrays(overlapping(), NAMES, tmp_path / "index", settings=DatasetSettings(duplicates="allow"))
    assert [len(Index.open(path)) for path in paths.values()] == [12, 12, 12]
    assert read_json(tmp_path / "index/summary.json")["duplicates"]["across_splits"]["train"] == 2


def test_a_class_lost_to_duplicates_is_an_error(tmp_path: Path) -> None:
    test = pictures(6)
    train = pictures(6, seed=1)
    train[[2, 5]] = test[[2, 5]]  # every cow
    given = {"train": (train, labels(6)), "validation": (pictures(6, 2), labels(6)), "test": (test, labels(6))}
    with pytest.raises(DataError, match=r"1 of 3 classes have no image to train on.*'cow'"):
        index_arrays(given, NAMES, tmp_path / "index", settings=DatasetSettings(duplicates="drop"))


@pytest.mark.parametrize("policy", ["drop", "allow"])
def test_an_image_under_two_classes_is_named_within_a_split_and_across(
    policy: Literal["drop", "allow"], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    test, train = pictures(6), pictures(12, seed=1)
    train[4] = train[0]  # of the next class
    train[3] = train[0]  # of the same
    train[8] = test[0]  # of the one after
    given = {"train": (train, labels(12)), "validation": (pictures(6, 2), labels(6)), "test": (test, labels(6))}
    index_arrays(given, NAMES, tmp_path / "index", settings=DatasetSettings(duplicates=policy))
    found = read_json(tmp_path / "index/summary.json")["duplicates"]["two_classes"]
    assert found == {
        "images": 2,
        "pairs": [["train-000004", "train-000000"], ["train-000008", "test-000000"]],
    }
    assert "one of the labels is wrong: 2, e.g. train-000004 and train-000000" in caplog.text
