"""The pyramid and its colours keep what the method says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clpdd.optimise.parameterisation import Parameterisation, pyramid_resolutions, to_uint8

CPU = torch.device("cpu")


def pyramid(
    start: torch.Tensor | str = "noise", size: int = 24, levels: bool = True, decorrelate: bool = True
) -> Parameterisation:
    return Parameterisation(2, size, pyramid=levels, decorrelate=decorrelate, start=start, seed=0, device=CPU)


@given(st.integers(1, 600))
def test_resolutions_double_and_end_at_the_size(size: int) -> None:
    levels = pyramid_resolutions(size)
    assert levels[0] == 1
    assert levels[-1] == size
    assert levels == sorted(set(levels))
    assert all(b == 2 * a for a, b in itertools.pairwise(levels[:-1]))


def test_growth_scales_the_earlier_levels_and_adds_noise_over_k() -> None:
    grown = pyramid()
    for k in range(2, len(grown.resolutions) + 1):
        before = [level.clone() for level in grown.levels]
        grown.extend()
        assert len(grown.levels) == k
        for old, new in zip(before, grown.levels[:-1], strict=True):
            torch.testing.assert_close(new, old * (k - 1) / k)
        assert grown.levels[-1].shape == (2, 3, grown.resolutions[k - 1], grown.resolutions[k - 1])
    assert grown.complete
    assert float(grown.levels[-1].std()) == pytest.approx(1 / k, rel=0.1)


def test_zero_start_is_grey_until_optimised() -> None:
    grown = pyramid("zero")
    while not grown.complete:
        torch.testing.assert_close(grown.decode(), torch.full((2, 3, 24, 24), 0.5))
        grown.extend()


@pytest.mark.parametrize("levels", [True, False])
@pytest.mark.parametrize("decorrelate", [True, False])
def test_real_images_come_back_from_the_parameters(levels: bool, decorrelate: bool) -> None:
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    decoded = pyramid(images, levels=levels, decorrelate=decorrelate).decode()
    torch.testing.assert_close(decoded, images.clamp(0.02, 0.98), rtol=1e-4, atol=1e-4)


def test_black_and_white_come_back_within_the_margin() -> None:
    images = (torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    assert float((pyramid(images).decode() - images).abs().max()) == pytest.approx(0.02, abs=1e-3)


def test_pixels_stay_in_the_unit_interval_and_gradients_reach_every_level() -> None:
    grown = pyramid()
    while not grown.complete:
        grown.extend()
    for level in grown.levels:
        level.mul_(50).requires_grad_()
    decoded = grown.decode().detach()
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1
    for level in grown.levels:
        level.data.div_(50)
    grown.decode().square().sum().backward()
    assert all(level.grad is not None and bool(level.grad.abs().sum() > 0) for level in grown.levels)


def test_gradient_equals_finite_differences() -> None:
    grown = pyramid(size=5)
    grown.extend()
    levels = [level.requires_grad_() for level in grown.levels]
    loss = grown.decode(levels).square().sum()
    (gradient, *_) = torch.autograd.grad(loss, levels)
    step = 1e-2
    nudge = torch.zeros_like(levels[0]).index_fill_(1, torch.tensor([1]), step)[:1]
    ups, downs = levels[0].detach().clone(), levels[0].detach().clone()
    ups[:1] += nudge
    downs[:1] -= nudge
    rest = [level.detach() for level in levels[1:]]
    difference = grown.decode([ups, *rest]).square().sum() - grown.decode([downs, *rest]).square().sum()
    assert float(difference / (2 * step)) == pytest.approx(float(gradient[0, 1]), rel=1e-2)


def test_rounding_to_bytes() -> None:
    assert to_uint8(torch.tensor([0.0, 0.5, 1.0, 1.2, -1.0])).tolist() == [0, 128, 255, 255, 0]


@pytest.mark.parametrize("start", ["noise", "zero", "images"])
def test_images_start_alike_whichever_others_are_held(start: str) -> None:
    whole: torch.Tensor | str = torch.rand(5, 3, 24, 24) if start == "images" else start
    part = whole if isinstance(whole, str) else whole[1:4]
    options: dict[str, Any] = {"pyramid": True, "decorrelate": True, "seed": 3, "device": CPU}
    every, some = (
        Parameterisation(5, 24, start=whole, **options),
        Parameterisation(5, 24, start=part, rows=range(1, 4), **options),
    )
    while not every.complete:
        every.extend()
        some.extend()
    assert some.complete
    assert all(torch.equal(one[1:4], other) for one, other in zip(every.levels, some.levels, strict=True))
