"""Real features on the device, in memory or on disk: the same bytes from everywhere."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from clpdd.config.distill import DistillSettings
from clpdd.features.store import FeatureStore
from clpdd.optimise.real_features import Excerpt, RealFeatures
from clpdd.stages.distill import distill
from tests.runs import variant

from .conftest import World
from .test_distill import QUICK

PLACES = ("device", "host", "stream")
CPU = torch.device("cpu")


@pytest.fixture
def store(world: World) -> FeatureStore:
    return FeatureStore.open(world.layout.features(world.encoder.name, "train"))


@pytest.mark.parametrize("where", PLACES)
def test_rows_and_blocks_are_the_stored_ones_less_the_mean(store: FeatureStore, where: str) -> None:
    mean = torch.linspace(-1, 1, store.dim)
    expected = store.features() - mean
    with closing(RealFeatures(store, CPU, mean, where)) as real:
        for step in (0, 1, 5, 5):
            rows = torch.randint(len(store), (40,), generator=torch.Generator().manual_seed(step))
            features, labels = real.batch(
                step, lambda s: torch.randint(len(store), (40,), generator=torch.Generator().manual_seed(s))
            )
            assert torch.equal(features, expected[rows])
            assert torch.equal(labels, store.labels[rows])
        blocks = list(real.blocks(33))
    assert torch.equal(torch.cat([features for features, _ in blocks]), expected)
    assert torch.equal(torch.cat([labels for _, labels in blocks]), store.labels)
    assert {len(labels) for _, labels in blocks[:-1]} == {33}


@pytest.mark.parametrize("where", PLACES)
def test_a_part_of_a_store_gives_its_own_rows_and_no_others(store: FeatureStore, where: str) -> None:
    mean, rows = torch.linspace(-1, 1, store.dim), range(17, 90)
    expected = (store.features() - mean)[17:90]
    with closing(RealFeatures(Excerpt(store, rows), CPU, mean, where)) as real:
        chosen = torch.tensor([72, 0, 5, 5])
        features, labels = real.batch(0, lambda step: chosen[: 4 - 4 * step])
        assert torch.equal(features, expected[chosen])
        assert torch.equal(labels, store.labels[17:90][chosen])
        assert [len(part) for part in real.batch(1, lambda _: chosen[:0])] == [0, 0]
        blocks = list(real.blocks(40))
    assert torch.equal(torch.cat([features for features, _ in blocks]), expected)
    assert torch.equal(torch.cat([labels for _, labels in blocks]), store.labels[17:90])


@pytest.mark.parametrize("outer", [0, 40])
def test_where_features_lie_decides_nothing(world: World, tmp_path: Path, outer: int) -> None:
    settings = DistillSettings(**QUICK | {"steps": 4, "outer_batch": outer})  # type: ignore[arg-type]
    made = []
    for where in PLACES:
        made.append(distill(variant("clp", settings), **world.inputs(tmp_path / where, features=where)))
    assert all(torch.equal(one.images, made[0].images) for one in made)
    assert all(one.info["curves"] == made[0].info["curves"] for one in made)


def test_what_a_reading_thread_runs_into_is_told(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(RealFeatures(store, CPU, torch.zeros(store.dim), "stream")) as real:
        monkeypatch.setattr(type(store), "stored", lambda *_: (_ for _ in ()).throw(OSError(os.strerror(5))))
        with pytest.raises(OSError, match="Input/output"):
            list(real.blocks(10))
        with pytest.raises(OSError, match="Input/output"):
            real.batch(0, lambda _: torch.arange(3))


def test_without_room_the_next_place_is_taken(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, narrow = len(store) * store.dim * 4, len(store) * store.dim * 2
    assert store.dtype == "float16"
    for room, where, kept in (
        (wide * 2, "device", torch.float32),
        (narrow * 2, "device", torch.float16),
        (9, "stream", None),
    ):
        monkeypatch.setattr("clpdd.optimise.real_features.device_bytes", lambda device, memory, room=room: room)
        with closing(RealFeatures(store, CPU, torch.zeros(store.dim), "auto")) as real:
            assert real.where == where
            assert kept is None or real.dtype == kept
            assert np.isfinite(torch.cat([features for features, _ in real.blocks(50)]).numpy()).all()
