"""Splits and limits: disjoint, proportional, a function of the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clpdd.datasets.split import limit, stratify
from clpdd.errors import DataError

from .conftest import NAMES, labels

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
