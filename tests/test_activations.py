"""Activations of frozen models: the same bits with fewer copies."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from clpdd.encoders.activations import Clip, spare_copies
from clpdd.encoders.calling import saved_bytes
from clpdd.encoders.folding import fold_batch_norms
from clpdd.encoders.loading import load_encoder


def passed(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    output = model(images * 1.0)
    (gradient,) = torch.autograd.grad(output.square().sum(), images)
    return output.detach(), gradient


def kept(model: nn.Module) -> int:
    """Bytes that one image more keeps for the way back."""
    one, two = (saved_bytes(model, torch.rand(count, 3, 64, 64)) for count in (1, 2))
    return two - one


def wide(*shape: int) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    "made", [nn.ReLU6, nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Mish, nn.Hardsigmoid, nn.ReLU, nn.LeakyReLU]
)
def test_every_bit_of_output_and_gradient_stays(made: type[nn.Module], inplace: bool) -> None:
    images = wide(2, 3, 4, 4)
    images[0, 0] = torch.tensor([0.0, 6.0, -1.0, 1.0])  # the bounds themselves
    model = nn.Sequential(nn.Conv2d(3, 5, 1), made(inplace=inplace)).requires_grad_(False)
    nn.init.dirac_(model[0].weight)  # type: ignore[arg-type]
    nn.init.zeros_(model[0].bias)  # type: ignore[arg-type]
    output, gradient = passed(model, images)
    spare_copies(model)
    found, found_gradient = passed(model, images)
    assert torch.equal(found, output)
    assert torch.equal(found_gradient, gradient)


@pytest.mark.parametrize(
    ("name", "most"),
    [("tf_efficientnet_lite0", 0.8), ("mobilenetv2_100", 0.8), ("efficientnet_b0", 1), ("mobilenetv3_small_050", 1)],
)
def test_a_model_keeps_its_bits_and_no_more_for_the_way_back(name: str, most: float) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    fold_batch_norms(model, images)
    before, bytes_before = passed(model, images), kept(model)
    spare_copies(model)
    assert all(map(torch.equal, passed(model, images), before))
    assert kept(model) <= most * bytes_before


def test_encoders_are_loaded_so() -> None:
    encoder = load_encoder("mobilenetv2_100", image_size=32, untrained=0, device="cpu")
    kinds = [type(module) for module in encoder.modules()]
    assert Clip in kinds
    assert nn.ReLU6 not in kinds


def test_what_may_not_be_overwritten_is_not() -> None:
    leaf = wide(3, 4).requires_grad_()
    whole = wide(3, 4)
    unchanged = whole.clone()
    clip = Clip(0.0, 6.0, inplace=True)
    for given in (leaf, whole[1:]):
        expected = given.detach().clamp(0.0, 6.0)
        assert torch.equal(clip(given), expected)
    assert torch.equal(whole, unchanged)
    assert torch.equal(Clip(0.0, 6.0)(whole), whole.clamp(0.0, 6.0))
    assert torch.equal(whole, unchanged)
    overwritten = whole.clone()
    assert clip(overwritten) is overwritten


def test_a_clipped_value_can_be_derived_twice() -> None:
    x = torch.tensor([-1.0, 0.5, 3.0, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(Clip(0.0, 6.0), (x,))
    assert torch.autograd.gradgradcheck(Clip(0.0, 6.0), (x,))


def test_what_only_inherits_from_an_activation_is_left() -> None:
    class Scaled(nn.ReLU6):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 6

    model = nn.Sequential(Scaled())
    spare_copies(model)
    assert type(model[0]) is Scaled
