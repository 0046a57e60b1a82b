"""The index: digits, arrays, splits, limits, duplicates, bytes on disk, reading back."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clpdd.config import DatasetSettings, SplitLimits
from clpdd.datasets import Index, build_index, index_arrays
from clpdd.datasets.split import limit, stratify
from clpdd.errors import ArtifactError, DataError, ResourceError
from clpdd.files import read_json, sha256_bytes, sha256_tree
from clpdd.layout import SPLITS

NAMES = ["ant", "bee", "cow"]


def pictures(count: int, seed: int = 0, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def labels(count: int, classes: int = 3) -> np.ndarray:
    return np.arange(count) % classes


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "index"
    paths = build_index(DatasetSettings(), 0, out)
    assert paths == {split: out / f"{split}.parquet" for split in SPLITS}
    return out


# -- splitting ---------------------------------------------------------------------------------------------------------

SHARES = st.floats(0.01, 0.6)


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=6),
    validation=SHARES,
    test=st.one_of(st.none(), SHARES),
    seed=st.integers(0, 2**31 - 1),
)
def test_stratified_splits_are_disjoint_complete_and_proportional(
    counts: list[int], validation: float, test: float | None, seed: int
) -> None:
    shares = {"validation": validation} | ({} if test is None else {"test": test})
    rows = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    names = [str(k) for k in range(len(counts))]
    parts = stratify(rows, shares, seed, names)
    together = np.concatenate(list(parts.values()))
    assert sorted(together.tolist()) == list(range(len(rows)))
    for part in parts.values():
        assert np.all(np.diff(part) > 0)
        assert set(rows[part]) == set(range(len(counts)))
    if sum(shares.values()) < 1:
        for split, share in shares.items():
            found = np.bincount(rows[parts[split]])
            assert np.all(np.abs(found - np.asarray(counts) * share) <= 2)
    again = stratify(rows, shares, seed, names)
    assert all(np.array_equal(parts[split], again[split]) for split in parts)


def test_test_images_stay_when_validation_is_given() -> None:
    rows = labels(90)
    both = stratify(rows, {"validation": 0.1, "test": 0.2}, 5, NAMES)
    alone = stratify(rows, {"test": 0.2}, 5, NAMES)
    np.testing.assert_array_equal(both["test"], alone["test"])


def test_seeds_change_the_split_and_classes_do_not_disturb_each_other() -> None:
    rows = labels(90)
    one, other = (stratify(rows, {"test": 0.2}, seed, NAMES)["test"] for seed in (0, 1))
    assert one.tolist() != other.tolist()
    fewer = stratify(rows[rows < 2], {"test": 0.2}, 0, NAMES)["test"]
    assert np.flatnonzero(rows < 2)[fewer].tolist() == one[rows[one] < 2].tolist()


def test_a_class_too_small_to_split_is_named() -> None:
    with pytest.raises(DataError, match="'cow' has 2, but 3 are needed, one for each of train, validation, test"):
        stratify(np.array([0] * 5 + [1] * 5 + [2] * 2), {"validation": 0.1, "test": 0.2}, 0, NAMES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=200), st.integers(1, 30), st.integers(0, 1000))
def test_limits_keep_at_most_so_many_of_each_class(given_labels: list[int], count: int, seed: int) -> None:
    rows = np.asarray(given_labels, dtype=np.int64)
    kept = limit(rows, np.arange(len(rows)), count, seed, "train")
    found = np.bincount(rows[kept], minlength=5)
    np.testing.assert_array_equal(found, np.minimum(np.bincount(rows, minlength=5), count))
    assert np.all(np.diff(kept) > 0)


def test_limits_are_random_choices_and_differ_between_splits() -> None:
    rows, everything = labels(300), np.arange(300)
    train, again = (limit(rows, everything, 10, 0, "train").tolist() for _ in range(2))
    assert train == again
    assert train != list(range(30))
    assert train != limit(rows, everything, 10, 0, "test").tolist()
    assert train != limit(rows, everything, 10, 1, "train").tolist()


# -- digits, files, bytes ----------------------------------------------------------------------------------------------


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


# -- arrays ------------------------------------------------------------------------------------------------------------


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


# -- duplicates and bad images -----------------------------------------------------------------------------------------


def overlapping() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Row 0 of train is in test, row 1 of train in validation, row 2 of validation in test; row 5 repeats row 4."""
    train, validation, test = (pictures(12, seed=k) for k in range(3))
    train[0], train[1], validation[2], train[5] = test[3], validation[4], test[5], train[4]
    return {split: (images, labels(12)) for split, images in zip(SPLITS, (train, validation, test), strict=True)}


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


# -- reading back ------------------------------------------------------------------------------------------------------


def test_rows_beyond_the_index_are_index_errors(digits: Path) -> None:
    index = Index.open(digits / "test.parquet")
    for row in (-1, len(index), 10**12):
        with pytest.raises(IndexError):
            index.image(row)


def test_rows_come_right_in_any_order_across_row_groups(digits: Path) -> None:
    index = Index.open(digits / "train.parquet")
    assert pq.ParquetFile(index.path).num_row_groups > 1
    expected = pq.read_table(index.path).column("bytes").to_pylist()
    for row in np.random.default_rng(0).permutation(len(index))[:60]:
        assert index.encoded(int(row)) == expected[row]


def _encoded_in_child(index: Index, row: int, queue: multiprocessing.Queue[bytes]) -> None:
    queue.put(index.encoded(row))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_index_travels_to_other_processes_as_its_path(digits: Path, method: str) -> None:
    index = Index.open(digits / "train.parquet")
    assert len(pickle.dumps(index)) < 500
    expected = index.encoded(1200), index.encoded(3)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_encoded_in_child, args=(index, 1200, queue))
    child.start()
    assert (queue.get(timeout=60), index.encoded(3)) == expected
    child.join(60)
    assert child.exitcode == 0


def test_digest_is_that_of_the_file(digits: Path) -> None:
    index = Index.open(digits / "test.parquet")
    assert index.digest == sha256_bytes((digits / "test.parquet").read_bytes())


def test_a_missing_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist: run the stage"):
        Index.open(tmp_path / "train.parquet")
    with pytest.raises(ArtifactError):
        Index.open(tmp_path)


def test_foreign_files_are_artifact_errors(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "train.parquet"
    for data in (b"", b"PAR1", b"hello" * 100):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged"):
            Index.open(path)
    table = pq.read_table(digits / "test.parquet")
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ArtifactError, match="no index of this program"):
        Index.open(path)
    pq.write_table(table.drop_columns(["sha256"]), path)
    with pytest.raises(ArtifactError, match="no index of this program"):
        Index.open(path)
    for record in (b"", b"{}", b"[1]", b"nonsense", b'{"format": 99}'):
        pq.write_table(table.replace_schema_metadata({b"clpdd": record}), path)
        with pytest.raises(ArtifactError, match="run the stage index"):
            Index.open(path)


def test_damage_anywhere_is_an_artifact_error_or_harmless(digits: Path, tmp_path: Path) -> None:
    """A flipped byte never yields an image other than the one that was stored."""
    whole = (digits / "validation.parquet").read_bytes()
    original = Index.open(digits / "validation.parquet")
    expected = [original.encoded(row) for row in range(len(original))]
    generator = np.random.default_rng(0)
    path, noticed = tmp_path / "validation.parquet", 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            index = Index.open(path)
            assert [index.encoded(row) for row in range(len(index))] == expected
            assert index.ids == original.ids
            assert index.labels.tolist() == original.labels.tolist()
        except ArtifactError:
            noticed += 1
    assert noticed > 20
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="damaged"):
            Index.open(path)


# -- writing -----------------------------------------------------------------------------------------------------------


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
