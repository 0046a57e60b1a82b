"""LGM: equal to the public implementation, its real batches, and what a step costs."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clpdd.config.augment import AugmentSettings
from clpdd.datasets.index import Index
from clpdd.encoders.encoder import Encoder
from clpdd.functional.matching import classifier_gradient, match_loss, random_classifier
from clpdd.methods.lgm import GradientMatch
from clpdd.methods.stream import RealStream
from clpdd.optimise.parameterisation import Parameterisation, pyramid_resolutions

from .conftest import World
from .contexts import context, start
from .pixels import gradient

REFERENCE = load_file(Path(__file__).parent / "reference" / "lgm.safetensors")
"""Numbers of the public implementation; reference/lgm.py says how they were made."""

OFF = AugmentSettings(flip=0.0, crop=False, noise=0.0)
SIZE, VIEWS = 12, 3


def features(images: torch.Tensor) -> torch.Tensor:
    return torch.tanh(((images - 0.5) / 0.25).flatten(1) @ REFERENCE["encoder"].T)


def synthetic_gradient(images: torch.Tensor) -> torch.Tensor:
    views = images.repeat(VIEWS, 1, 1, 1)
    views = views + 0.01 * torch.arange(len(views)).view(-1, 1, 1, 1)
    labels = REFERENCE["labels"].repeat(VIEWS)
    return classifier_gradient(features(views), labels, REFERENCE["weight"], REFERENCE["bias"])


def test_both_gradients_the_loss_and_its_image_gradient_equal_the_public_code() -> None:
    real = classifier_gradient(
        features(REFERENCE["real"]), REFERENCE["real_labels"], REFERENCE["weight"], REFERENCE["bias"]
    )
    torch.testing.assert_close(real, REFERENCE["grad_real"], rtol=1e-5, atol=1e-7)
    images = REFERENCE["images"].clone().requires_grad_()
    synthetic = synthetic_gradient(images)
    torch.testing.assert_close(synthetic, REFERENCE["grad_syn"], rtol=1e-5, atol=1e-7)
    loss = match_loss(real, synthetic)
    torch.testing.assert_close(loss[None], REFERENCE["loss"])
    (gradient,) = torch.autograd.grad(loss, images)
    torch.testing.assert_close(gradient, REFERENCE["image_gradient"], rtol=1e-4, atol=1e-7)


def test_the_pyramid_and_its_gradient_equal_the_public_code() -> None:
    pyramid = Parameterisation(
        4, SIZE, pyramid=True, decorrelate=True, start="noise", seed=0, device=torch.device("cpu")
    )
    resolutions = pyramid_resolutions(SIZE)
    pyramid.levels = [REFERENCE["before.1"]]
    for resolution in resolutions[1:]:
        pyramid.extend()
        pyramid.levels[-1] = REFERENCE[f"before.{resolution}" if resolution < SIZE else f"level.{SIZE}"]
    for resolution, level in zip(resolutions, pyramid.levels, strict=True):
        torch.testing.assert_close(level, REFERENCE[f"level.{resolution}"])
    levels = [level.clone().requires_grad_() for level in pyramid.levels]
    images = pyramid.decode(levels)
    torch.testing.assert_close(images, REFERENCE["images"])
    loss = match_loss(REFERENCE["grad_real"], synthetic_gradient(images))
    for resolution, found in zip(resolutions, torch.autograd.grad(loss, levels), strict=True):
        torch.testing.assert_close(found, REFERENCE[f"level_gradient.{resolution}"], rtol=1e-4, atol=1e-6)


def test_the_written_out_gradient_is_that_of_autograd() -> None:
    Z, labels = torch.randn(30, 7), torch.randint(5, (30,))
    layer = torch.nn.Linear(7, 5)
    torch.nn.functional.cross_entropy(layer(Z), labels).backward()
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    expected = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    torch.testing.assert_close(classifier_gradient(Z, labels, layer.weight, layer.bias), expected)


def test_every_step_has_a_fresh_classifier() -> None:
    first, bias = random_classifier(3, 1000, 0, 0)
    again, _ = random_classifier(3, 1000, 0, 0)
    other, _ = random_classifier(3, 1000, 0, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.01, rel=0.05)
    assert not bias.any()


# -- real batches ------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_at_most_once_and_the_next_in_another_order(world: World) -> None:
    index = Index.open(world.layout.index("train"))
    with closing(RealStream(index, world.encoder.transform, 25, seed=0)) as stream:
        per_epoch = len(index) // 25
        first = torch.cat([stream.rows(step) for step in range(per_epoch)])
        second = torch.cat([stream.rows(step) for step in range(per_epoch, 2 * per_epoch)])
    assert len(first) == per_epoch * 25
    assert len(first.unique()) == len(first)
    assert not torch.equal(first, second)


def test_a_batch_is_a_function_of_seed_and_step_and_holds_the_images_it_names(world: World) -> None:
    index = Index.open(world.layout.index("train"))
    with closing(RealStream(index, world.encoder.transform, 9, seed=3)) as stream:
        in_order = [stream.at(step) for step in range(15)]
    with closing(RealStream(index, world.encoder.transform, 9, seed=3)) as stream:
        images, labels = stream.at(14)
        rows = stream.rows(14).tolist()
    assert torch.equal(images, in_order[14][0])
    assert torch.equal(labels, in_order[14][1])
    for image, label, row in zip(images, labels, rows, strict=True):
        assert torch.equal(image, world.encoder.transform(index.image(row)))
        assert label == index.labels[row]


def test_a_batch_larger_than_the_set_is_the_set(world: World) -> None:
    index = Index.open(world.layout.index("train"))
    with closing(RealStream(index, world.encoder.transform, 10_000, seed=0)) as stream:
        images, _ = stream.at(0)
    assert len(images) == len(index)


# -- a step ------------------------------------------------------------------------------------------------------------


def test_two_passes_equal_one(world: World, tmp_path: Path) -> None:
    one = GradientMatch(context(world, tmp_path, augmentations=3, encoder_batch=512))
    two = GradientMatch(context(world, tmp_path, augmentations=3, encoder_batch=7))
    with closing(one), closing(two):
        loss, found = gradient(one, start(), 5)
        again, chunked = gradient(two, start(), 5)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(chunked, found, rtol=1e-3, atol=1e-4 * found.abs().max().item())


def test_following_the_gradient_lowers_the_loss(world: World, tmp_path: Path) -> None:
    problem = GradientMatch(context(world, tmp_path, augment=OFF, augmentations=1))
    images = start()
    with closing(problem):
        loss, found = gradient(problem, images, 0)
        lower, _ = gradient(problem, images - 1e-2 * found / found.norm(), 0)
    assert lower < loss


@pytest.mark.parametrize("batch", [512, 7])
def test_the_cost_counts_what_went_through_the_encoder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    seen = {"forward": 0, "backward": 0}
    forward = Encoder.forward

    def counted(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        seen["forward"] += len(images)
        seen["backward"] += len(images) * images.requires_grad
        return forward(self, images)

    problem = GradientMatch(context(world, tmp_path, augmentations=3, encoder_batch=batch))
    monkeypatch.setattr(Encoder, "forward", counted)
    with closing(problem):
        gradient(problem, start(), 0)
    assert problem.cost == (seen["forward"], seen["backward"])


def test_real_images_come_from_the_training_split_alone(world: World, tmp_path: Path) -> None:
    made = context(world, tmp_path)
    assert "test" not in {field.name for field in dataclasses.fields(made)}
    problem = GradientMatch(made)
    with closing(problem):
        assert problem.stream.index.split == "train"
