"""One CLP-DD step: its gradient, its memory-saving form, and what it may read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from clpdd.config.augment import AugmentSettings
from clpdd.functional.objectives import attach, blocked_gradient, outer_loss
from clpdd.functional.seeding import generator
from clpdd.methods.clp import ClosedFormProbe
from clpdd.optimise.context import Context

from .conftest import World
from .contexts import context, start
from .pixels import gradient

OFF = AugmentSettings(flip=0.0, crop=False, noise=0.0)


@pytest.mark.parametrize("objective", ["cross_entropy", "cosine", "mse"])
def test_gradient_equals_finite_differences_through_solve_encoder_and_augmentation(
    world: World, tmp_path: Path, objective: str
) -> None:
    made = context(world, tmp_path, objective=objective, augmentations=2, outer_batch=0, precision="float32")
    problem = ClosedFormProbe(made)
    # float64 all the way: the encoder's gradient has kinks that float32 differences would drown in
    encoder = world.encoder.double()
    features, labels = made.train.features().double(), problem.real.labels
    try:
        problem.mean = problem.mean.double()
        problem.loss = lambda Z, step: outer_loss(  # type: ignore[method-assign]
            problem.probe(Z), features - problem.mean, labels, objective, problem.settings.number("temperature")
        )
        problem.encode = lambda pixels: encoder.model((pixels - encoder.mean) / encoder.std)
        images = start().double()
        direction = torch.randn(images.shape, generator=generator(1, "direction"), dtype=torch.float64)
        direction /= direction.norm()
        _, found = gradient(problem, images, 3)
        step = 1e-5
        there, back = (gradient(problem, images + way * step * direction, 3)[0] for way in (1, -1))
        assert (found * direction).sum().item() == pytest.approx((there - back) / (2 * step), rel=2e-3)
    finally:
        world.encoder.float()


def test_two_passes_equal_one(world: World, tmp_path: Path) -> None:
    one = ClosedFormProbe(context(world, tmp_path, augmentations=3, encoder_batch=512))
    two = ClosedFormProbe(context(world, tmp_path, augmentations=3, encoder_batch=7))
    loss, found = gradient(one, start(), 5)
    again, chunked = gradient(two, start(), 5)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(chunked, found, rtol=1e-3, atol=1e-4 * found.abs().max().item())


def test_a_step_is_a_function_of_images_and_step(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, outer_batch=50))
    first = gradient(problem, start(), 7)
    gradient(problem, start(), 8)
    problem.validate((start() * 255).byte())
    again = gradient(problem, start(), 7)
    assert again[0] == first[0]
    assert torch.equal(again[1], first[1])


def test_whole_set_is_the_mean_of_its_mini_batches(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, outer_batch=0, augment=OFF))
    Z = world.encoder(start())
    whole = problem.loss(Z, 0)
    parts = [
        outer_loss(problem.probe(Z), real, labels, "cross_entropy", problem.settings.number("temperature"))
        * len(labels)
        for real, labels in problem.real.blocks(40)
    ]
    torch.testing.assert_close(torch.stack(parts).sum() / len(problem.real), whole)


def test_blocks_of_real_features_change_neither_loss_nor_gradient(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, outer_batch=0, augment=OFF))
    W = problem.probe(world.encoder(start())).detach().requires_grad_()
    ((real, labels),) = problem.real.blocks(10_000)
    whole = outer_loss(W, real, labels, "cosine", 0.1)
    blocked = attach(W, *blocked_gradient(W, problem.real.blocks(17), len(problem.real), "cosine", 0.1))
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(torch.autograd.grad(blocked, W)[0], torch.autograd.grad(whole, W)[0])


@pytest.mark.parametrize("centre", ["real", "none"])
def test_mse_over_the_whole_set_comes_from_the_moments_alone(world: World, tmp_path: Path, centre: str) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, objective="mse", outer_batch=0, augment=OFF, centre=centre))
    Z = world.encoder(start()).detach().requires_grad_()
    ((real, labels),) = problem.real.blocks(10_000)
    expected = outer_loss(problem.probe(Z), real, labels, "mse", 1.0)
    (found,) = torch.autograd.grad(expected, Z)
    real *= torch.nan  # not looked at
    loss = problem.loss(Z, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, Z)[0], found, rtol=1e-3, atol=1e-7)


def test_following_the_gradient_lowers_the_loss(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, augment=OFF, outer_batch=0))
    images = start()
    loss, found = gradient(problem, images, 0)
    lower, _ = gradient(problem, images - 1e-2 * found / found.norm(), 0)
    assert lower < loss


def test_no_parameter_of_the_encoder_gets_a_gradient(world: World, tmp_path: Path) -> None:
    gradient(ClosedFormProbe(context(world, tmp_path)), start(), 0)
    assert all(p.grad is None and not p.requires_grad for p in world.encoder.parameters())


def test_a_method_is_given_nothing_of_the_test_split() -> None:
    names = {field.name for field in dataclasses.fields(Context)}
    assert not any("test" in name for name in names)
