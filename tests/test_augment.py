"""Differentiable augmentation against torch's own resampling, and its gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from clpdd.config.augment import AugmentSettings
from clpdd.functional.augment import augment
from clpdd.functional.resample import crop_matrix, resize
from clpdd.functional.seeding import generator

OFF = AugmentSettings(flip=0.0, crop=False)
ALL = AugmentSettings(noise=0.5)


def images(n: int = 4, size: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(st.integers(2, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_resize_equals_interpolate(before: int, after: int) -> None:
    x = images(2, before)
    torch.testing.assert_close(resize(x, after), F.interpolate(x, size=after, mode="bilinear"))


def test_a_size_first_asked_for_while_caching_serves_gradients_later() -> None:
    x = images(1, 13)
    with torch.inference_mode():
        first = resize(x, 29)
    again = resize(x.clone().requires_grad_(), 29)
    again.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(again, first)


@given(st.floats(0.1, 1.0), st.floats(0.0, 1.0), st.booleans())
@settings(max_examples=40, deadline=None)
def test_crop_and_flip_equal_grid_sample(extent: float, place: float, flip: bool) -> None:
    x = images(1)
    start = place * (1 - extent)
    left, wide = (start + extent, -extent) if flip else (start, extent)
    rows = crop_matrix(torch.tensor([start]).double(), torch.tensor([extent]).double(), 12, 8)
    columns = crop_matrix(torch.tensor([left]).double(), torch.tensor([wide]).double(), 12, 8)
    ours = rows[:, None] @ x @ columns[:, None].mT
    centre = 2 * (start + extent / 2) - 1
    theta = torch.tensor([[[-extent if flip else extent, 0, centre], [0, extent, centre]]]).double()
    grid = F.affine_grid(theta, [1, 3, 8, 8], align_corners=False)
    reference = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    # affine_grid works in float32 here and there
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-6)


def test_the_same_seed_gives_the_same_views_and_another_step_others() -> None:
    x = images()
    one = augment(x, 8, ALL, generator(0, "augment", 7, 0))
    torch.testing.assert_close(one, augment(x, 8, ALL, generator(0, "augment", 7, 0)), rtol=0, atol=0)
    assert not torch.equal(one, augment(x, 8, ALL, generator(0, "augment", 8, 0)))


def test_gradient_reaches_every_image_and_equals_finite_differences() -> None:
    x = images(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, 5, ALL, generator(1, "a")), x)
    augment(x, 5, ALL, generator(1, "a")).sum().backward()
    assert x.grad is not None
    assert bool((x.grad.flatten(1).abs().sum(1) > 0).all())


def test_everything_off_changes_nothing() -> None:
    x = images()
    torch.testing.assert_close(augment(x, 12, OFF, generator(0)), x)


def test_flip_alone_is_a_mirror() -> None:
    x = images()
    torch.testing.assert_close(augment(x, 12, OFF.model_copy(update={"flip": 1.0}), generator(0)), x.flip(3))


def test_without_noise_values_stay_between_the_extremes() -> None:
    views = augment(images(50), 12, AugmentSettings().without_noise(), generator(3))
    assert 0 <= float(views.min()) <= float(views.max()) <= 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_noise_hits_its_share_of_images_with_its_moments(share: float) -> None:
    x = torch.zeros(2000, 3, 4, 4)
    views = augment(x, 4, AugmentSettings(flip=0.0, crop=False, noise=share), generator(0))
    hit = views.flatten(1).abs().sum(1) > 0
    assert float(hit.double().mean()) == pytest.approx(share, abs=0.05)
    if share:
        assert float(views[hit].mean()) == pytest.approx(0.5, abs=0.01)
        assert float(views[hit].std()) == pytest.approx(0.2, abs=0.01)
