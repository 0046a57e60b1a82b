"""SFM: equal to the public implementation at one image per class, to the paper's equation at several."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clpdd.config.augment import AugmentSettings
from clpdd.config.settings import Settings
from clpdd.functional.flow import class_centres, decoupled_loss, flow, flow_loss, others
from clpdd.methods.sfm import FlowMatch
from clpdd.methods.sfm_decouple import CentreMatch

from .conftest import World
from .contexts import context, start
from .pixels import gradient

REFERENCE = load_file(Path(__file__).parent / "reference" / "sfm.safetensors")
"""Numbers of the public implementation; reference/sfm.py says how they were made."""

OFF = AugmentSettings(flip=0.0, crop=False, noise=0.0)
VIEWS, ALPHA = 3, 0.3


def features(images: Tensor) -> Tensor:
    views = torch.cat([images + 0.01 * view for view in range(VIEWS)])
    return torch.tanh(((views - 0.5) / 0.25).flatten(1) @ REFERENCE["encoder"].T)


@pytest.mark.parametrize("name", ["sfm", "sfm_decouple"])
def test_loss_and_image_gradient_equal_the_public_code_at_one_image_per_class(name: str) -> None:
    images = REFERENCE["images"].clone().requires_grad_()
    synthetic = class_centres(features(images), torch.eye(len(images)))
    real = REFERENCE["centres"]
    loss = flow_loss(real, synthetic) if name == "sfm" else decoupled_loss(real, synthetic, ALPHA)
    torch.testing.assert_close(loss[None], REFERENCE[f"{name}.loss"], rtol=1e-6, atol=1e-7)
    (found,) = torch.autograd.grad(loss, images)
    torch.testing.assert_close(found, REFERENCE[f"{name}.gradient"], rtol=1e-4, atol=1e-8)


def test_centres_and_flows_are_the_equations_with_several_images_and_views() -> None:
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    Z = torch.randn(2 * 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    centres = class_centres(Z, torch.nn.functional.one_hot(labels, 3).double())
    repeated = labels.repeat(2)
    for c in range(3):
        own = sum(Z[i] for i in range(12) if repeated[i] == c) / int((repeated == c).sum())
        torch.testing.assert_close(centres[c], own)
    for c in range(3):
        rest = [centres[k] for k in range(3) if k != c]
        torch.testing.assert_close(others(centres)[c], (rest[0] + rest[1]) / 2)
        torch.testing.assert_close(flow(centres)[c], (rest[0] + rest[1]) / 2 - centres[c])


def test_several_images_of_a_class_count_as_the_one_image_that_has_their_mean() -> None:
    """The public code divides by images less one instead of classes less one, and fails this."""
    generator = torch.Generator().manual_seed(2)
    real, one = (torch.randn(4, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    spread = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    two = torch.stack([one - spread, one + spread], 1).flatten(0, 1)  # (8, d): labels 0, 0, 1, 1, ...
    eye = torch.eye(4, dtype=torch.float64)
    several = class_centres(two, eye.repeat_interleave(2, 0))
    torch.testing.assert_close(flow_loss(real, several), flow_loss(real, class_centres(one, eye)))
    torch.testing.assert_close(several, one)


def test_the_loss_is_zero_at_the_real_centres_and_blind_to_what_all_centres_share() -> None:
    real = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert float(flow_loss(real, 3 * real + 7)) == pytest.approx(0, abs=1e-12)
    assert float(decoupled_loss(real, real, 0.4)) == 0
    assert float(decoupled_loss(real, real + 2, 1.0)) == pytest.approx(4)
    assert float(flow_loss(real, -real)) == pytest.approx(2)


# -- a step ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [FlowMatch, CentreMatch])
def test_following_the_gradient_lowers_the_loss(world: World, tmp_path: Path, problem: type[FlowMatch]) -> None:
    images = start()
    with closing(problem(context(world, tmp_path, augment=OFF, augmentations=1, own_share=0.5))) as own:
        loss, found = gradient(own, images, 0)
        lower, _ = gradient(own, images - 1e-2 * found / found.norm(), 0)
    assert lower < loss


@pytest.mark.parametrize("problem", [FlowMatch, CentreMatch])
def test_two_passes_equal_one(world: World, tmp_path: Path, problem: type[FlowMatch]) -> None:
    one = problem(context(world, tmp_path, augmentations=3, encoder_batch=512, own_share=0.5))
    two = problem(context(world, tmp_path, augmentations=3, encoder_batch=7, own_share=0.5))
    with closing(one), closing(two):
        loss, found = gradient(one, start(), 5)
        again, chunked = gradient(two, start(), 5)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(chunked, found, rtol=1e-3, atol=1e-4 * found.abs().max().item())


def test_a_step_costs_no_real_image(world: World, tmp_path: Path) -> None:
    with closing(FlowMatch(context(world, tmp_path, augmentations=3, encoder_batch=512))) as problem:
        assert problem.cost == (30, 30)
        assert not hasattr(problem, "stream")


@pytest.mark.parametrize("name", ["sfm", "sfm-decouple"])
def test_the_variant_is_the_published_schedule_with_one_view(name: str) -> None:
    variant = Settings(methods=[name]).variant(name)
    assert variant.method == name
    chosen = variant.settings
    assert (chosen.steps, chosen.learning_rate, chosen.schedule, chosen.keep) == (5000, 2e-3, "constant", "last")
    assert (chosen.augmentations, chosen.initialisation, chosen.extend_every) == (1, "noise", 200)
    assert chosen.own_share == 1.0
