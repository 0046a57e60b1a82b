"""The real images that optimisation starts from: one for each part of a class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clpdd.errors import SettingsError
from clpdd.methods.loading import load_method
from clpdd.optimise.start import medoid_rows, nearest_rows, real_images

from .conftest import World
from .contexts import context


def test_one_image_per_class_starts_from_the_most_central_one(world: World, tmp_path: Path) -> None:
    one = context(world, tmp_path, initialisation="medoids")
    assert medoid_rows(one) == nearest_rows(one)


def test_several_images_start_from_different_parts_of_their_class(world: World, tmp_path: Path) -> None:
    several = context(world, tmp_path, initialisation="medoids", images_per_class=4)
    Z, labels = several.train.features().double(), torch.tensor(several.index.labels)

    def left_over(rows: list[int]) -> float:
        """Mean squared distance of the training images to the nearest start of their class."""
        squares = [
            torch.cdist(Z[labels == c], Z[rows[4 * c : 4 * c + 4]]).amin(1).square() for c in range(several.classes)
        ]
        return float(torch.cat(squares).mean())

    rows = medoid_rows(several)
    assert rows == medoid_rows(several)
    assert len(set(rows)) == 40
    assert labels[rows].tolist() == several.labels.tolist()
    assert left_over(rows) < 0.95 * left_over(nearest_rows(several))


def test_the_optimisation_begins_with_them(world: World, tmp_path: Path) -> None:
    two = context(
        world, tmp_path, initialisation="medoids", images_per_class=2, steps=1, augmentations=1, outer_batch=32
    )
    made = load_method("clp")(two)
    assert made.start is not None
    assert torch.equal(made.start, real_images(two, medoid_rows(two)))


def test_more_images_than_a_class_has_are_refused_by_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"images_per_class is 900 for class .* training images"):
        medoid_rows(context(world, tmp_path, initialisation="medoids", images_per_class=900))
