"""Features of JPEG images that were decoded at reduced scale: near the exact ones, and never taken for them."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from clpdd.datasets.index import Index
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.errors import ArtifactError
from clpdd.features.decoding import decode_rows
from clpdd.features.store import FeatureStore
from clpdd.features.versions import confirm
from clpdd.stages.cache import cache_features
from clpdd.storage.files import seal, sha256_bytes, sha256_tree
from tests.runs import run_in

from .conftest import SMALL, counted, make_encoder

REDUCED = SMALL.model_copy(update={"jpeg": "reduced"})


@pytest.fixture(scope="module")
def photographs(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index with JPEG images of 200 x 160 pixels or 150 x 120 in turns, of which the first alone can be reduced."""
    table = pq.read_table(index)  # type: ignore[no-untyped-call]
    rows, opened = table.to_pylist()[:50], Index.open(index)
    for k, row in enumerate(rows):
        stream = io.BytesIO()
        small = opened.image(k).resize((20, 16), Image.Resampling.BOX)
        small.resize([(200, 160), (150, 120)][k % 2], Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        row["bytes"] = stream.getvalue()
        row["sha256"] = sha256_bytes(row["bytes"])
    path = tmp_path_factory.mktemp("photographs") / "train.parquet"
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)  # type: ignore[no-untyped-call]
    return path


@pytest.fixture(scope="module")
def stores(photographs: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:

    root = tmp_path_factory.mktemp("stores")
    for settings in (SMALL, REDUCED):
        cache_features(photographs, make_encoder(weights), settings, root / settings.jpeg, run_in(root / "work"))
    return {"exact": root / "exact", "reduced": root / "reduced"}


def test_features_are_those_of_the_images_decoded_that_way(
    photographs: Path, encoder: Encoder, stores: dict[str, Path]
) -> None:
    opened = Index.open(photographs)
    found = {}
    for way in (SMALL.jpeg, REDUCED.jpeg):
        preprocess = replace(encoder.preprocess, jpeg=way)
        pixels = torch.from_numpy(decode_rows(opened, preprocess, 0, len(opened)))
        found[way] = FeatureStore.open(stores[way]).features()
        torch.testing.assert_close(found[way], encode(encoder, pixels, 50), rtol=1e-5, atol=1e-6)
    off = (found["exact"] - found["reduced"]).norm(dim=1) / found["exact"].norm(dim=1)
    assert (off[::2] > 1e-5).all()
    assert off.max() < 0.05
    assert torch.equal(found["exact"][1::2], found["reduced"][1::2])  # too small to be reduced


def test_images_of_other_formats_have_the_same_features(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    store = cache_features(index, encoder, REDUCED, tmp_path / "a.zarr", run_in(tmp_path / "work"))
    assert store.digest == FeatureStore.open(finished).digest


def test_a_store_says_how_it_was_decoded(stores: dict[str, Path]) -> None:
    assert {way: FeatureStore.open(path).jpeg for way, path in stores.items()} == {way: way for way in stores}


def test_bytes_do_not_depend_on_the_workers(
    photographs: Path, encoder: Encoder, stores: dict[str, Path], tmp_path: Path
) -> None:
    cache_features(photographs, encoder, REDUCED, tmp_path / "a.zarr", run_in(tmp_path / "work", workers=1))
    assert sha256_tree(tmp_path / "a.zarr") == sha256_tree(stores["reduced"])
    assert not multiprocessing.active_children()


def test_a_store_decoded_the_other_way_is_not_taken(photographs: Path, encoder: Encoder, tmp_path: Path) -> None:
    for settings in (SMALL, REDUCED, SMALL):
        with counted(encoder) as sizes:
            store = cache_features(photographs, encoder, settings, tmp_path / "a.zarr", run_in(tmp_path / "work"))
        assert store.jpeg == settings.jpeg
        if settings is REDUCED:
            assert sum(sizes) == len(store)


def relabelled(store: Path, target: Path, jpeg: str | None) -> FeatureStore:
    """A copy that says to be of an older timm and to have been decoded as ``jpeg``; ``None``: as older ones do."""

    shutil.copytree(store, target)
    group = json.loads((target / "zarr.json").read_text())
    record = group["attributes"]["clpdd"]
    record["versions"]["timm"] = "1.0.14"
    record.pop("jpeg")
    if jpeg is not None:
        record["jpeg"] = jpeg
    record["seal"] = seal(record)
    (target / "zarr.json").write_text(json.dumps(group))
    return FeatureStore.open(target)


def test_stores_of_other_versions_are_compared_in_their_own_way_of_decoding(
    photographs: Path, encoder: Encoder, stores: dict[str, Path], tmp_path: Path
) -> None:
    confirm(relabelled(stores["reduced"], tmp_path / "a", "reduced"), encoder, photographs)
    confirm(relabelled(stores["exact"], tmp_path / "b", "exact"), encoder, photographs)
    confirm(relabelled(stores["exact"], tmp_path / "c", None), encoder, photographs)
    with pytest.raises(ArtifactError, match="have other features"):
        confirm(relabelled(stores["reduced"], tmp_path / "d", "exact"), encoder, photographs)


def test_images_read_for_anything_else_stay_whole(photographs: Path, encoder: Encoder) -> None:
    opened = Index.open(photographs)
    assert opened.image(0).size == (200, 160)
    np.testing.assert_array_equal(
        decode_rows(opened, encoder.preprocess, 0, 1)[0], encoder.transform(opened.image(0)).numpy()
    )
