"""Coresets: the same rows as slow oracles choose, the same bytes every time, bounded memory, refusals by name."""

from __future__ import annotations

import importlib
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clpdd.config.loading import parse_settings
from clpdd.errors import DataError, ResourceError, SettingsError
from clpdd.features import by_class
from clpdd.features.by_class import ClassFeatures, Scale
from clpdd.functional import coreset_memory
from clpdd.functional.coresets import GreedyRidge, facility_location, herding, k_centre, k_medoids
from clpdd.functional.ridge import centred_one_hot
from clpdd.methods.coreset import Coreset
from clpdd.methods.loading import load_method

from .allocations import peak_bytes
from .conftest import World
from .contexts import context

NAMES = ["k-centre", "herding", "k-medoids", "facility-location", "ridge-greedy"]


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def points(n: int = 40, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=seeded(seed))


CHOICES: dict[str, Callable[[Tensor, int], list[int]]] = {
    "k-centre": k_centre,
    "herding": herding,
    "k-medoids": lambda Z, count: k_medoids(Z, count, seeded(0)),
    "facility-location": facility_location,
}


# -- against slow oracles ----------------------------------------------------------------------------------------------


def distances(Z: Tensor) -> np.ndarray:
    X = Z.numpy()
    return np.array([[np.linalg.norm(a - b) for b in X] for a in X])


def test_k_centre_takes_the_row_farthest_from_all_chosen_ones() -> None:
    Z, D = points(), distances(points())
    chosen = k_centre(Z, 8)
    assert chosen[0] == int(np.linalg.norm(Z.numpy() - Z.numpy().mean(0), axis=1).argmin())
    for t in range(1, 8):
        assert chosen[t] == int(D[:, chosen[:t]].min(1).argmax())


def test_k_centre_is_at_most_twice_as_far_as_the_best_choice() -> None:
    D = distances(points(9, 2))
    radius = D[:, k_centre(points(9, 2), 3)].min(1).max()
    best = min(D[:, list(rows)].min(1).max() for rows in itertools.combinations(range(9), 3))
    assert best <= radius <= 2 * best


def test_herding_takes_the_row_that_brings_the_mean_nearest() -> None:
    Z = points()
    X, chosen = Z.numpy(), herding(Z, 10)
    for t in range(10):
        tried = [
            float(np.linalg.norm(X.mean(0) - X[[*chosen[:t], j]].mean(0))) if j not in chosen[:t] else float("inf")
            for j in range(len(X))
        ]
        assert chosen[t] == int(np.argmin(tried))


def test_facility_location_takes_the_row_of_the_largest_gain() -> None:
    Z, D = points(), distances(points())
    far = 2 * np.linalg.norm(Z.numpy() - Z.numpy().mean(0), axis=1).max()
    nearest = np.full(len(D), far)
    expected: list[int] = []
    for _ in range(8):
        gains = np.maximum(nearest - D, 0).sum(1)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        nearest = np.minimum(nearest, D[expected[-1]])
    assert facility_location(Z, 8) == expected
    assert facility_location(Z, 8, rows=3) == expected  # blocks decide memory and nothing else


def tied(seed: int) -> Tensor:
    """60 rows of many ties: pairs that are nearest to one another, rows twice, and all in the mirror, far from zero."""
    half = points(12, 6, seed)
    pairs = torch.cat([half, half + 0.1 * points(12, 6, seed + 100)])
    Z = torch.cat([pairs, -pairs, pairs[:12]])
    return Z[torch.randperm(60, generator=seeded(seed))] + 3


def lowest(values: np.ndarray) -> int:
    """The first of the largest, up to rounding."""
    return int((values >= values.max() - 1e-8).nonzero()[0][0])


@pytest.mark.parametrize("seed", range(20))
def test_facility_location_takes_the_lowest_row_of_equals_whatever_the_blocks(seed: int) -> None:
    Z = tied(seed)
    D = distances(Z)
    nearest = np.full(60, 2 * np.linalg.norm(Z.numpy() - Z.numpy().mean(0), axis=1).max())
    expected: list[int] = []
    for _ in range(60):  # more than the 48 rows that differ: the gain of the last ones is zero
        gains = np.maximum(nearest - D, 0).sum(1)
        gains[expected] = -1
        expected.append(lowest(gains))
        nearest = np.minimum(nearest, D[expected[-1]])
    for rows in (1, 3, 7, 256):
        assert facility_location(Z, 60, rows=rows) == expected


@pytest.mark.parametrize("seed", range(20))
def test_k_centre_and_herding_take_the_lowest_row_of_equals(seed: int) -> None:
    Z = tied(seed)
    D, offsets = distances(Z), Z.numpy() - Z.numpy().mean(0)
    spread, herded = [lowest(-np.linalg.norm(offsets, axis=1))], list[int]()
    for _ in range(59):
        far = D[:, spread].min(1)
        far[spread] = -1
        spread.append(lowest(far))
    assert k_centre(Z, 60) == spread
    for _ in range(60):
        away = np.linalg.norm(offsets[herded].sum(0) + offsets, axis=1)
        away[herded] = np.inf
        herded.append(lowest(-away))
    assert herding(Z, 60) == herded


@pytest.mark.parametrize("name", ["k-centre", "herding", "k-medoids"])
def test_of_two_rows_equally_far_from_their_mean_the_first_is_taken(name: str) -> None:
    for seed in range(50):
        assert CHOICES[name](points(2, 7, seed), 1) == [0]


def test_k_medoids_takes_the_first_row_of_every_cluster_of_two() -> None:
    for seed in range(50):
        places = 100 * torch.eye(5, dtype=torch.float64)
        Z = (places[:, None] + points(10, 5, seed).view(5, 2, 5)).flatten(0, 1)  # two rows at each of five places
        assert set(k_medoids(Z, 5, seeded(seed))) == {0, 2, 4, 6, 8}


def test_k_medoids_finds_separate_clusters_and_their_central_rows_largest_first() -> None:
    sizes, places = (5, 12, 8), torch.eye(3, dtype=torch.float64) * 100
    parts = [place + points(size, 3, seed=size) for size, place in zip(sizes, places, strict=True)]
    Z = torch.cat(parts)
    starts = (0, 5, 17)
    central = [
        start + int((part - part.mean(0)).norm(dim=1).argmin()) for start, part in zip(starts, parts, strict=True)
    ]
    for seed in range(5):
        assert k_medoids(Z, 3, seeded(seed)) == [central[1], central[2], central[0]]


def test_k_medoids_ends_where_no_row_is_nearer_to_another_centre() -> None:
    Z = points(200, 4)
    chosen = k_medoids(Z, 6, seeded(0))
    spread = distances(Z)[:, chosen].min(1).mean()
    drawn = [distances(Z)[:, torch.randperm(200, generator=seeded(s))[:6].tolist()].min(1).mean() for s in range(10)]
    assert spread < min(drawn)


@pytest.mark.parametrize("name", ["k-centre", "herding", "k-medoids", "facility-location"])
def test_all_rows_can_be_chosen_each_once_even_where_all_are_the_same(name: str) -> None:
    assert sorted(CHOICES[name](points(12), 12)) == list(range(12))
    assert sorted(CHOICES[name](torch.ones(4, 3, dtype=torch.float64), 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["k-centre", "herding", "k-medoids"])
def test_one_row_is_the_one_nearest_to_the_mean(name: str) -> None:
    Z = points()
    assert CHOICES[name](Z, 1) == [int((Z - Z.mean(0)).norm(dim=1).argmin())]


def test_a_choice_of_few_begins_a_choice_of_more_where_rows_are_chosen_one_by_one() -> None:
    for name in ("k-centre", "herding", "facility-location"):
        assert CHOICES[name](points(), 4) == CHOICES[name](points(), 9)[:4]


def test_the_growing_ridge_probe_is_the_probe_solved_on_all_its_rows() -> None:
    Z, labels = points(7, 5, seed=1), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    held, held_labels = points(30, 5, seed=2), torch.arange(30) % 3
    Y, held_Y = centred_one_hot(labels, 3).double(), centred_one_hot(held_labels, 3).double()

    def loss(W: Tensor) -> float:
        return float((held @ W - held_Y).square().sum())

    def probe(rows: list[int]) -> Tensor:
        X = Z[rows]
        weights: Tensor = X.T @ torch.linalg.solve(X @ X.T + 0.7 * torch.eye(len(rows)), Y[rows])
        return weights

    grown = GreedyRidge(held.T @ held, held.T @ held_Y, 0.7)
    chosen: list[int] = []
    for row in (3, 0, 5, 1, 6, 2, 4):
        foretold = float(grown.changes(Z[row : row + 1], int(labels[row])))
        before = loss(grown.weights)
        grown.add(Z[row], int(labels[row]))
        chosen.append(row)
        torch.testing.assert_close(grown.weights, probe(chosen))
        assert foretold == pytest.approx(loss(grown.weights) - before, rel=1e-8)


# -- the methods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_coreset_holds_real_images_of_the_right_classes_and_is_the_same_again(
    world: World, tmp_path: Path, name: str
) -> None:
    counts = {"default": 2, "3": 3}
    made, again = (load_method(name)(context(world, tmp_path, images_per_class=counts)) for _ in range(2))
    given = context(world, tmp_path)
    assert made.labels.tolist() == [c for c in range(10) for _ in range(3 if c == 3 else 2)]
    rows = [given.index.ids.index(source) for source in made.info["sources"]]
    assert [given.index.labels[row] for row in rows] == made.labels.tolist()
    assert len(set(rows)) == 21
    for image, row in zip(made.images, rows, strict=True):
        assert torch.equal(image, world.encoder.transform(given.index.image(row)))
    assert torch.equal(made.images, again.images)
    assert made.info == again.info


def test_ridge_greedy_takes_each_turn_the_image_with_the_lowest_validation_loss(world: World, tmp_path: Path) -> None:
    given = context(world, tmp_path, images_per_class=2)
    scale = Scale.of(given.kernels, given.encoder.parts)
    Z, labels = scale(given.train.features()), given.train.labels
    held = scale(given.validation.features())
    held_Y, Y = (centred_one_hot(y, 10).double() for y in (given.validation.labels, labels))
    ridge = given.settings.number("ridge") * float(Z.square().sum(1).mean())

    def loss(rows: list[int]) -> float:
        X = Z[rows]
        W = X.T @ torch.linalg.solve(X @ X.T + ridge * torch.eye(len(rows)), Y[rows])
        return float((held @ W - held_Y).square().sum())

    chosen: list[int] = []
    for label in [*range(10), *range(3)]:  # the second turn's first three classes
        members = [row for row in (labels == label).nonzero().flatten().tolist() if row not in chosen]
        chosen.append(min(members, key=lambda row: loss([*chosen, row])))
    sources = load_method("ridge-greedy")(given).info["sources"]
    found = [given.index.ids.index(source) for source in sources]
    assert found[::2] == chosen[:10]
    assert found[1:6:2] == chosen[10:]


def test_herding_and_k_medoids_with_one_image_are_the_most_central_images(world: World, tmp_path: Path) -> None:
    given = context(world, tmp_path)
    central = load_method("centroid")(given).info["sources"]
    assert load_method("herding")(given).info["sources"] == central
    assert load_method("k-medoids")(given).info["sources"] == central


# -- memory ------------------------------------------------------------------------------------------------------------


def test_classes_come_with_their_own_features_however_many_are_read_together(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = context(world, tmp_path)
    whole = Scale.of(given.kernels, given.encoder.parts)(given.train.features())
    for rows, passes in ((10**6, 1), (30, 5), (1, 10)):
        monkeypatch.setattr(by_class, "_BYTES", 8 * given.train.dim * rows)
        with caplog.at_level(logging.INFO, "clpdd"):
            features = ClassFeatures(given.train, given.kernels, given.encoder.parts, "herding", lambda label, n: n)
        assert features.passes == passes
        said = "1 pass" if passes == 1 else f"{passes} passes"
        assert f"herding: {features.bytes / 2**30:.2f} GiB of memory at most, {said} over the features" in caplog.text
        seen = list(features)
        assert [label for label, _, _ in seen] == list(range(10))
        for label, members, Z in seen:
            assert members.tolist() == (given.train.labels == label).nonzero().flatten().tolist()
            assert torch.equal(Z, whole[members])


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(("n", "d", "count"), [(700, 16, 5), (600, 200, 50), (500, 8, 400)])
def test_a_choice_holds_no_more_than_it_says(name: str, n: int, d: int, count: int) -> None:
    Z, said = points(n, d), 8 * getattr(coreset_memory, name.replace("-", "_"))(n, d, count)
    assert 0.5 * said < peak_bytes(lambda: CHOICES[name](Z, count)) <= said


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [10**6, 30, 1])
def test_the_memory_that_is_told_is_not_exceeded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    told: list[int] = []

    class Noted(ClassFeatures):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            told.append(self.bytes)

    given = context(world, tmp_path)
    monkeypatch.setattr(by_class, "_BYTES", 8 * given.train.dim * rows)
    method = load_method(name)
    module = importlib.import_module(type(method).__module__ if name == "ridge-greedy" else Coreset.__module__)
    monkeypatch.setattr(module, "ClassFeatures", Noted)
    monkeypatch.setattr(module, "chosen_set", lambda context, rows: rows)  # pictures are no part of the choice
    assert peak_bytes(lambda: method(given)) <= told[0]


def test_a_class_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_class, "free_bytes", lambda device: 1000)
    told = r"herding needs .* class '0' \(12 images .*: lower dataset\.max_per_class\.train"
    with pytest.raises(ResourceError, match=told):
        load_method("herding")(context(world, tmp_path))


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_more_images_than_a_class_has_are_refused_by_its_name(world: World, tmp_path: Path, name: str) -> None:
    counts = {"default": 1, "7": 13} if name != "ridge-greedy" else {"default": 1, "7": 10}
    given = context(world, tmp_path, images_per_class=counts)
    if name == "ridge-greedy":
        given.train.labels = torch.where(given.train.labels == 7, 6, given.train.labels)
        given.train.labels[0] = 7
    with pytest.raises(DataError, match=r"class '7' has \d+ training images, but distill.images_per_class is 1[03]"):
        load_method(name)(given)


def test_ridge_greedy_above_ten_is_refused_where_it_is_asked_for(world: World, tmp_path: Path) -> None:
    told = "chooses at most 10 images per class: lower it, or take another coreset, e.g. herding"
    asked = {"methods": ["ridge-greedy"], "distill": {"images_per_class": 11}}
    with pytest.raises(SettingsError, match=told):
        parse_settings(asked)
    with pytest.raises(SettingsError, match=f"benchmark.images_per_class holds 11, but ridge-greedy {told}"):
        parse_settings(
            {
                "kernels": {"nearest": 11},
                "benchmark": {"methods": ["ridge-greedy"], "peers": {}, "images_per_class": [11]},
            }
        )
    with pytest.raises(SettingsError, match=told):
        load_method("ridge-greedy")(context(world, tmp_path, images_per_class=11))
    assert parse_settings(asked | {"methods": ["herding"]}).methods == ["herding"]  # the remedy
    with pytest.raises(SettingsError, match=r"distill\.ridge is 0"):
        load_method("ridge-greedy")(context(world, tmp_path, ridge=0.0))
