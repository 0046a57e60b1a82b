"""Features that other versions of the libraries made: adopted where they are the same, else refused."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch

from clpdd.config.cache import CacheSettings
from clpdd.config.evaluate import EvaluateSettings
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.encoder import Encoder
from clpdd.errors import ArtifactError
from clpdd.evaluation.inputs import open_bench
from clpdd.features.decoding import decode_rows
from clpdd.features.same_images import refuse_other_images
from clpdd.features.store import FeatureStore
from clpdd.features.versions import confirm
from clpdd.report.insight import look_closer
from clpdd.stages.cache import cache_features
from clpdd.stages.distill import distill
from clpdd.stages.evaluate import evaluate, evaluation_data
from clpdd.storage.files import seal
from clpdd.storage.layout import Layout

from .conftest import World
from .runs import run_in, variant


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Layout:
    """The small world's index, features and kernels, to be altered."""
    for part in ("index", "features", "kernels"):
        shutil.copytree(world.layout.index("train").parents[1] / part, tmp_path / part)
    return Layout(tmp_path)


@pytest.fixture
def changed(world: World) -> Iterator[Encoder]:
    """The encoder under a timm that computes a little otherwise: same weights, same digest, other features."""
    hook = world.encoder.model.register_forward_hook(lambda *call: call[-1] + 0.02 * call[-1].roll(1, 1))
    yield world.encoder
    hook.remove()


def made_by(store: Path, versions: dict[str, str] | None, **more: Any) -> None:
    """Rewrite what a store says it was made by; ``None``: as stores did before they said."""
    group = json.loads((store / "zarr.json").read_text())
    record = group["attributes"]["clpdd"]
    record.pop("versions")
    if versions is None:
        record.pop("precision")
    else:
        record |= {"versions": versions} | more
    record["seal"] = seal(record)
    (store / "zarr.json").write_text(json.dumps(group))


def versions(**other: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name).partition("+")[0] for name in ("pillow", "timm", "torch")} | other


def test_a_store_records_what_made_it(world: World) -> None:
    store = FeatureStore.open(world.layout.features(world.encoder.name, "train"))
    assert store.versions == versions()
    assert store.precision == "float32"


def test_a_store_of_these_versions_is_not_looked_into(world: World, changed: Encoder, tmp_path: Path) -> None:
    store = FeatureStore.open(world.layout.features(changed.name, "train"))
    confirm(store, changed, tmp_path / "no index is read")


@pytest.mark.parametrize("other", [versions(timm="1.0.14"), versions(torch="2.7.1", pillow="11.0"), None])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_equal_features_of_other_versions_are_adopted_and_it_is_said(
    other: dict[str, str] | None,
    dtype: Literal["float16", "float32"],
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    index, path = world.layout.index("test"), tmp_path / "test.zarr"
    cache_features(index, world.encoder, CacheSettings(dtype=dtype), path, run_in(tmp_path / "work"))
    made_by(path, other)
    with caplog.at_level(logging.INFO, "clpdd"):
        confirm(FeatureStore.open(path), world.encoder, index)
    (said,) = [record.message for record in caplog.records if "encoded again" in record.message]
    expected = {"timm": "timm 1.0.14", "torch": "torch 2.7.1"}.get(next(iter(other or {}), ""), "")
    assert "8 of its images encoded again are the same within rounding" in said
    assert expected in said
    assert (f"timm unknown (now {timm.__version__})" in said) == (other is None)


def test_what_bfloat16_rounds_is_adopted_and_what_it_does_not_is_refused(
    world: World, changed: Encoder, tmp_path: Path
) -> None:
    """A store of bfloat16 is compared in bfloat16, whose rounding is coarser: a fiftieth passes, a fifth does not."""
    path = tmp_path / "test.zarr"
    shutil.copytree(world.layout.features(changed.name, "test"), path)
    index = world.layout.index("test")
    made_by(path, versions(timm="1.0.14"), precision="bfloat16")
    confirm(FeatureStore.open(path), changed, index)
    hook = changed.model.register_forward_hook(lambda *call: call[-1] + 0.2 * call[-1].roll(2, 1))
    try:
        with pytest.raises(ArtifactError, match="have other features"):
            confirm(FeatureStore.open(path), changed, index)
    finally:
        hook.remove()


def test_other_features_are_refused_with_the_versions_and_the_remedy(
    copied: Layout, changed: Encoder, tmp_path: Path
) -> None:
    path = copied.features(changed.name, "test")
    made_by(path, versions(timm="1.0.14"))
    with pytest.raises(ArtifactError) as caught:
        confirm(FeatureStore.open(path), changed, copied.index("test"))
    said = str(caught.value)
    assert f"was made by timm 1.0.14 (now {timm.__version__}), and 8 of its images" in said
    assert f"run the cache stage of {changed.name} again" in said
    cache_features(copied.index("test"), changed, CacheSettings(), path, run_in(tmp_path / "fresh"))
    confirm(FeatureStore.open(path), changed, copied.index("test"))


def test_an_index_that_is_gone_or_another_cannot_be_compared(copied: Layout, world: World) -> None:
    path = copied.features(world.encoder.name, "test")
    made_by(path, versions(torch="2.7.1"))
    with pytest.raises(ArtifactError, match=r"is not there to compare: run the cache stage"):
        confirm(FeatureStore.open(path), world.encoder, copied.index("test").with_name("gone.parquet"))
    with pytest.raises(ArtifactError, match=r"does not hold the images of .*train\.parquet"):
        confirm(FeatureStore.open(path), world.encoder, copied.index("train"))


def inputs(layout: Layout, encoder: Encoder, root: Path) -> dict[str, Any]:
    return World(layout, encoder).inputs(root)


def test_distilling_compares_and_wants_both_splits_of_one_make(
    copied: Layout, changed: Encoder, tmp_path: Path
) -> None:
    for split in ("train", "validation"):
        made_by(copied.features(changed.name, split), versions(timm="1.0.14"))
    with pytest.raises(ArtifactError, match=r"train\.zarr was made by timm 1\.0\.14 .* have other features"):
        distill(variant("centroid"), **inputs(copied, changed, tmp_path))
    made_by(copied.features(changed.name, "train"), versions())
    with pytest.raises(ArtifactError, match=r"validation\.zarr was made by other versions of the libraries"):
        distill(variant("centroid"), **inputs(copied, changed, tmp_path))
    made_by(copied.features(changed.name, "validation"), versions(), jpeg="reduced")
    with pytest.raises(ArtifactError, match=r"validation\.zarr was made with cache\.jpeg: reduced, and .* with exact"):
        distill(variant("centroid"), **inputs(copied, changed, tmp_path))


def test_evaluating_compares_test_features_but_for_what_encodes_nothing(
    copied: Layout, changed: Encoder, tmp_path: Path
) -> None:
    name = changed.name
    for method in ("centroid", "full"):
        distill(variant(method), **inputs(copied, changed, tmp_path) | {"target": tmp_path / method})
    made_by(copied.features(name, "test"), versions(timm="1.0.14"))

    def judge(method: str, **other: Any) -> None:
        evaluate(
            {(name, method): tmp_path / method},
            {name: replace(evaluation_data(copied, name, changed), **other)},
            EvaluateSettings(seeds=1, views=1, epochs=1, protocols=["closed_form"]),
            tmp_path / "results",
            run=run_in(tmp_path / "evaluating"),
        )

    with pytest.raises(ArtifactError, match=r"test\.zarr was made by timm 1\.0\.14"):
        judge("centroid")
    judge("full")
    judge("centroid", test_index=None)


def test_the_pixels_compared_are_those_the_encoder_is_given(world: World) -> None:
    index = Index.open(world.layout.index("test"))
    pixels = decode_rows(index, world.encoder.preprocess, 0, 1)
    assert torch.equal(torch.from_numpy(pixels[0]), world.encoder.transform(index.image(0)))


def test_features_of_other_images_than_the_index_holds_are_refused(
    copied: Layout, world: World, tmp_path: Path
) -> None:
    name = world.encoder.name
    for split, other in (("test", "validation"), ("train", "test")):
        shutil.copy(copied.index(other), copied.index(split))
        store = FeatureStore.open(copied.features(name, split))
        with pytest.raises(ArtifactError, match=rf"{split}\.zarr does not hold the images of .*: run cache again"):
            refuse_other_images(store, Index.open(copied.index(split)))
    with pytest.raises(ArtifactError, match=r"test\.zarr does not hold the images of"):  # of the versions that run
        open_bench(name, evaluation_data(copied, name, world.encoder))
    nothing = {"clp": DistilledSet(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1).long(), ["0"], {})}
    with pytest.raises(ArtifactError, match=r"test\.zarr does not hold the images of"):
        look_closer(copied, world.encoder, "clp", nothing, EvaluateSettings(), 0)
    with pytest.raises(ArtifactError, match=r"train\.zarr does not hold the images of"):
        distill(variant("centroid"), **inputs(copied, world.encoder, tmp_path))
