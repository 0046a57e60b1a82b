"""Reading the feature store: exact, and refusing what is damaged."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from clpdd.errors import ArtifactError
from clpdd.features.store import FeatureStore

from .conftest import ROWS, SHARDS, flip


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy.zarr"))


@pytest.mark.parametrize("rows", [1, 7, 8, 32, 100, ROWS, 10_000])
def test_blocks_are_the_features_in_order(finished: Path, rows: int) -> None:
    store = FeatureStore.open(finished)
    blocks = list(store.blocks(rows))
    assert all(len(Z) == rows for Z, _ in blocks[:-1])
    assert torch.equal(torch.cat([Z for Z, _ in blocks]), store.features())
    assert torch.equal(torch.cat([labels for _, labels in blocks]), store.labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 40, 10_000])
def test_a_scan_is_the_blocks_in_two_buffers(finished: Path, rows: int, dtype: torch.dtype) -> None:
    store = FeatureStore.open(finished)
    buffers = set()
    for (Z, labels), (expected, wanted) in zip(store.scan(rows, dtype), store.blocks(rows), strict=True):
        assert torch.equal(Z, expected.to(dtype))
        assert torch.equal(labels, wanted)
        buffers.add(Z.data_ptr())
    assert len(buffers) == min(2, -(-ROWS // rows))


def test_any_stretch_of_rows_is_what_zarr_reads(finished: Path) -> None:
    store, array = FeatureStore.open(finished), zarr.open_array(str(finished / "features"), mode="r")
    for start, stop in [
        (0, 0),
        (0, 1),
        (5, 9),
        (8, 16),
        (30, 35),
        (31, 97),
        (149, 150),
        (140, 999),
        (0, ROWS),
        (ROWS, 999),
    ]:
        np.testing.assert_array_equal(store.stored(start, stop), np.asarray(array[start:stop]))


def test_a_scan_that_is_left_early_ends_its_thread(finished: Path) -> None:
    scan = FeatureStore.open(finished).scan(8)
    next(scan)
    scan.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_a_shard_is_a_file_and_zarr_alone_can_read_it(finished: Path) -> None:
    assert len([p for p in (finished / "features").rglob("*") if p.is_file()]) == SHARDS + 1
    group = zarr.open_group(str(finished), mode="r")
    assert group["features"].shape == (ROWS, 768)  # type: ignore[union-attr]
    assert not list(finished.rglob("*.partial"))


def read(path: Path) -> None:
    store = FeatureStore.open(path)
    store.features()
    _ = store.ids


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_store_says_which_stage_makes_it(tmp_path: Path) -> None:
    refused(tmp_path / "none.zarr", "does not exist", "cache stage")


def test_foreign_stores_are_refused(store: Path, tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "v3.zarr"), zarr_format=3)
    refused(tmp_path / "v3.zarr", "not a feature store")
    zarr.create_group(str(tmp_path / "v2.zarr"), zarr_format=2)
    refused(tmp_path / "v2.zarr", "Zarr version 2")
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "no finished feature store")
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["clpdd"]["format"] = 99
    (store / "zarr.json").write_text(json.dumps(metadata))
    refused(store, "format 99", "this version reads 1", "run the cache stage again")


@pytest.mark.parametrize("name", ["features/c/4/0", "features/zarr.json", "labels/c/0", "ids/c/0", "ids/zarr.json"])
def test_missing_and_truncated_files_are_noticed_on_opening(store: Path, name: str) -> None:
    data = (store / name).read_bytes()
    (store / name).write_bytes(data[:-1])
    refused(store, name, f"{len(data) - 1} bytes instead of {len(data)}", "run the cache stage again")
    (store / name).unlink()
    refused(store, name, "missing", "run the cache stage again")


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "features/zarr.json",
        "labels/zarr.json",
        "features/c/0/0",
        "features/c/4/0",
        "labels/c/0",
        "ids/c/0",
    ],
)
def test_flipped_bytes_are_noticed(store: Path, name: str) -> None:
    size = (store / name).stat().st_size
    # The last shard has room for chunks beyond the last row; their index entries are covered by its own checksum.
    for at in {0, size // 3, size // 2, size - 30, size - 1}:
        flip(store / name, at)
        refused(store, "delete it and run")
        flip(store / name, at)
    FeatureStore.open(store).features()
