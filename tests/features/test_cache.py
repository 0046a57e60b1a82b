"""Encoding into the feature store: exact, whatever the workers, and refusing what cannot be stored."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from clpdd.datasets.index import Index
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.errors import ArtifactError, NumericalError, ResourceError
from clpdd.features.store import FeatureStore
from clpdd.stages.cache import cache_features
from clpdd.storage.files import sha256_tree
from tests.runs import run_in

from .conftest import ROWS, SMALL


def direct(index: Path, encoder: Encoder) -> torch.Tensor:
    opened = Index.open(index)
    images = torch.stack([encoder.transform(opened.image(row)) for row in range(len(opened))])
    return encode(encoder, images, batch=50)


def test_store_holds_the_encoders_features_in_the_order_of_the_index(
    index: Path, encoder: Encoder, finished: Path
) -> None:
    store, opened = FeatureStore.open(finished), Index.open(index)
    torch.testing.assert_close(store.features(), direct(index, encoder), rtol=1e-5, atol=1e-6)
    assert (len(store), store.dim, store.split, store.dtype) == (ROWS, 768, "train", "float32")
    assert store.ids == opened.ids
    assert store.labels.dtype == torch.int64
    assert store.labels.tolist() == opened.labels.tolist()
    assert store.class_names == ["ä", "b", "c"]
    assert store.encoder == encoder.describe()
    assert store.index == opened.digest


def test_float16_differs_by_its_rounding_alone(index: Path, encoder: Encoder, finished: Path, tmp_path: Path) -> None:
    half = cache_features(
        index, encoder, SMALL.model_copy(update={"dtype": "float16"}), tmp_path / "half.zarr", run_in(tmp_path)
    )
    exact = FeatureStore.open(finished)
    assert half.dtype == "float16"
    assert torch.equal(half.features(torch.float16), exact.features().half())
    assert half.digest != exact.digest


def test_the_encoder_works_in_the_precision_asked_for(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    rough = SMALL.model_copy(update={"precision": "bfloat16"})
    found = cache_features(index, encoder, rough, tmp_path / "rough.zarr", run_in(tmp_path)).features()
    exact = FeatureStore.open(finished).features()
    error = (found - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    opened = Index.open(index)
    images = torch.stack([encoder.transform(opened.image(row)) for row in range(len(opened))])
    torch.testing.assert_close(found, encode(encoder, images, precision="bfloat16"), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("workers", [1, 2, None])
def test_bytes_do_not_depend_on_the_workers(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, workers: int | None
) -> None:
    cache_features(index, encoder, SMALL, tmp_path / "train.zarr", run_in(tmp_path / "work", workers=workers))
    assert sha256_tree(tmp_path / "train.zarr") == sha256_tree(finished)


def test_chunking_changes_the_files_and_not_the_content(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    settings = SMALL.model_copy(update={"chunk_rows": 4})
    other = cache_features(index, encoder, settings, tmp_path / "train.zarr", run_in(tmp_path / "work"))
    assert other.digest == FeatureStore.open(finished).digest


def shifted(encoder: Encoder, amount: float) -> Encoder:
    """The encoder with ``amount`` added ahead of its last activation."""
    state = encoder.model.state_dict()
    state[[key for key in state if key.endswith("conv3.bias")][-1]].add_(amount)
    return encoder


def test_overflow_of_float16_names_the_image_and_the_remedy(index: Path, encoder: Encoder, tmp_path: Path) -> None:
    half = SMALL.model_copy(update={"dtype": "float16"})
    with pytest.raises(NumericalError, match=r"'train-0+'.*float16.*cache\.dtype: float32"):
        cache_features(index, shifted(encoder, 1e6), half, tmp_path / "a.zarr", run_in(tmp_path / "work"))
    assert not (tmp_path / "a.zarr").exists()
    cache_features(index, encoder, SMALL, tmp_path / "a.zarr", run_in(tmp_path / "work"))


def test_nan_features_are_refused_in_every_dtype(index: Path, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"NaN or infinite features for image 'train-0+'"):
        cache_features(index, shifted(encoder, float("nan")), SMALL, tmp_path / "a.zarr", run_in(tmp_path / "work"))


def test_a_missing_index_and_a_store_where_a_file_stands(encoder: Encoder, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.parquet"):
        cache_features(tmp_path / "gone.parquet", encoder, SMALL, tmp_path / "a.zarr", run_in(tmp_path / "work"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="file"):
        cache_features(index, encoder, SMALL, tmp_path / "a.zarr", run_in(tmp_path / "file"))


def test_trouble_in_a_worker_ends_the_run_and_the_workers(encoder: Encoder, index: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    data = bytearray(index.read_bytes())
    at = data.index(b"\x89PNG", len(data) // 2)
    data[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"train\.parquet is damaged"):
        cache_features(path, encoder, SMALL, tmp_path / "a.zarr", run_in(tmp_path / "work", workers=1))
    assert not multiprocessing.active_children()
    assert not (tmp_path / "a.zarr").exists()
