"""The cached features as a table that other tools open."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from clpdd.encoders.loading import load_encoder
from clpdd.errors import ArtifactError, ResourceError
from clpdd.features.store import FeatureStore
from clpdd.features.table import write_features
from clpdd.stages.cache import cache_features
from tests.runs import run_in

from .conftest import ROWS, SMALL, make_encoder


@pytest.fixture
def stores(finished: Path, index: Path, weights: Path, tmp_path: Path) -> list[FeatureStore]:
    """Those of the training and the test split."""
    test = tmp_path / "test.zarr"
    cache_features(index.with_name("test.parquet"), make_encoder(weights), SMALL, test, run_in(tmp_path / "work"))
    return [FeatureStore.open(finished), FeatureStore.open(test)]


def test_a_row_has_file_split_class_and_the_very_features(stores: list[FeatureStore], tmp_path: Path) -> None:
    table = pq.read_table(write_features(stores, tmp_path / "out.parquet"))
    train, test = stores
    assert table["file"].to_pylist() == [*train.ids, *test.ids]
    assert table["split"].to_pylist() == ["train"] * ROWS + ["test"] * 3
    assert table["label"].to_pylist() == [*train.labels.tolist(), 0, 1, 2]
    assert table["class"].to_pylist()[-3:] == ["ä", "b", "c"]
    features = np.array(table["features"].to_pylist(), np.float32)
    assert np.array_equal(features[:ROWS], train.features().numpy())
    assert np.array_equal(features[ROWS:], test.features().numpy())
    assert json.loads(table.schema.metadata[b"clpdd"]) == {"encoder": train.encoder, "class_names": ["ä", "b", "c"]}
    assert "group" not in table.column_names


def test_datasets_knows_the_classes(stores: list[FeatureStore], tmp_path: Path) -> None:
    file = str(write_features(stores, tmp_path / "out.parquet"))
    opened = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.features["label"].names == ["ä", "b", "c"]
    assert len(opened[0]["features"]) == stores[0].dim


def test_the_same_bytes_come_out_and_nothing_is_overwritten(stores: list[FeatureStore], tmp_path: Path) -> None:
    one, two = (write_features(stores, tmp_path / name) for name in ("one.parquet", "two.parquet"))
    assert one.read_bytes() == two.read_bytes()
    with pytest.raises(ResourceError, match="exists already"):
        write_features(stores, one)


def test_features_of_two_encoders_are_no_table_and_leave_none(
    stores: list[FeatureStore], index: Path, tmp_path: Path
) -> None:
    other = load_encoder("resnet10t", image_size=32, untrained=0, device="cpu")
    store = cache_features(
        index.with_name("test.parquet"), other, SMALL, tmp_path / "other.zarr", run_in(tmp_path / "others")
    )
    with pytest.raises(ArtifactError, match="different encoders"):
        write_features([stores[0], store], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
