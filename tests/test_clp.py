"""One CLP-DD step: its gradient, its memory-saving form, and what it may read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from clpdd.config import AugmentSettings, DistillSettings
from clpdd.datasets import Index
from clpdd.features import FeatureStore
from clpdd.kernels import Kernels
from clpdd.methods.base import Context
from clpdd.methods.clp import ClosedFormProbe
from clpdd.objectives import outer_loss
from clpdd.seeding import generator

from .conftest import World

OFF = AugmentSettings(flip=0.0, crop=False, noise=0.0)


def context(world: World, tmp_path: Path, **settings: object) -> Context:
    layout, name = world.layout, world.encoder.name
    return Context(
        DistillSettings(**settings),  # type: ignore[arg-type]
        0,
        world.encoder,
        Index.open(layout.index("train")),
        FeatureStore.open(layout.features(name, "train")),
        FeatureStore.open(layout.features(name, "validation")),
        Kernels.load(layout.kernels(name)),
        tmp_path,
    )


def start(n: int = 10, size: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=generator(0, "test"))


@pytest.mark.parametrize("objective", ["cross_entropy", "cosine", "mse"])
def test_gradient_equals_finite_differences_through_solve_encoder_and_augmentation(
    world: World, tmp_path: Path, objective: str
) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, objective=objective, augmentations=2, outer_batch=0))
    # float64 all the way: the encoder's gradient has kinks that float32 differences would drown in
    problem.encoder = world.encoder.double()
    try:
        problem.mean, problem.real = problem.mean.double(), problem.real.double()
        images = start().double()
        direction = torch.randn(images.shape, generator=generator(1, "direction"), dtype=torch.float64)
        direction /= direction.norm()

        def loss_at(images: torch.Tensor) -> float:
            views = problem._views(images, 3)
            mean, std = world.encoder.mean, world.encoder.std
            features = world.encoder.model((views - mean) / std)
            return problem.loss(features, 3).item()

        images.requires_grad_()
        views = problem._views(images, 3)
        features = world.encoder.model((views - world.encoder.mean) / world.encoder.std)
        (gradient,) = torch.autograd.grad(problem.loss(features, 3), images)
        images = images.detach()
        step = 1e-5
        difference = (loss_at(images + step * direction) - loss_at(images - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(difference, rel=2e-3)
    finally:
        world.encoder.float()


def test_two_passes_equal_one(world: World, tmp_path: Path) -> None:
    one = ClosedFormProbe(context(world, tmp_path, augmentations=3, encoder_batch=512))
    two = ClosedFormProbe(context(world, tmp_path, augmentations=3, encoder_batch=7))
    loss, gradient = one.gradient(start(), 5)
    again, chunked = two.gradient(start(), 5)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(chunked, gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def test_a_step_is_a_function_of_images_and_step(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, outer_batch=50))
    first = problem.gradient(start(), 7)
    problem.gradient(start(), 8)
    problem.validate(start())
    again = problem.gradient(start(), 7)
    assert again[0] == first[0]
    assert torch.equal(again[1], first[1])


def test_whole_set_is_the_mean_of_its_mini_batches(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, outer_batch=0, augment=OFF))
    Z = world.encoder(start())
    whole = problem.loss(Z, 0)
    real, labels = problem.real, problem.real_labels
    parts = []
    for rows in torch.arange(len(real)).split(40):
        problem.real, problem.real_labels = real[rows], labels[rows]
        parts.append(problem.loss(Z, 0) * len(rows))
    torch.testing.assert_close(torch.stack(parts).sum() / len(real), whole)


@pytest.mark.parametrize("centre", ["real", "none"])
def test_mse_over_the_whole_set_comes_from_the_moments_alone(world: World, tmp_path: Path, centre: str) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, objective="mse", outer_batch=0, augment=OFF, centre=centre))
    Z = world.encoder(start()).detach().requires_grad_()
    expected = outer_loss(problem.probe(Z), problem.real, problem.real_labels, "mse", 1.0)
    (gradient,) = torch.autograd.grad(expected, Z)
    problem.real = problem.real * torch.nan  # not looked at
    loss = problem.loss(Z, 0)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, Z)[0], gradient, rtol=1e-3, atol=1e-7)


def test_following_the_gradient_lowers_the_loss(world: World, tmp_path: Path) -> None:
    problem = ClosedFormProbe(context(world, tmp_path, augment=OFF, outer_batch=0))
    images = start()
    loss, gradient = problem.gradient(images, 0)
    lower, _ = problem.gradient(images - 1e-2 * gradient / gradient.norm(), 0)
    assert lower < loss


def test_no_parameter_of_the_encoder_gets_a_gradient(world: World, tmp_path: Path) -> None:
    ClosedFormProbe(context(world, tmp_path)).gradient(start(), 0)
    assert all(p.grad is None and not p.requires_grad for p in world.encoder.parameters())


def test_a_method_is_given_nothing_of_the_test_split() -> None:
    names = {field.name for field in dataclasses.fields(Context)}
    assert not any("test" in name for name in names)
