"""Batch norms folded into convolutions: the same outputs and gradients, or the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from clpdd.encoders import architectures  # noqa: F401  (registers ours)
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.folding import fold_batch_norms
from clpdd.encoders.loading import load_encoder


def alive(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model``, frozen, its batch norms with statistics and factors that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.running_mean, -0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                if values is not None:
                    values.data.uniform_(low, low + 1.0, generator=generator)
            if module.weight is not None:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval().requires_grad_(False)


def noise(size: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def pixel_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    images = images.clone().requires_grad_()
    features = model(images)
    (gradient,) = torch.autograd.grad(features.square().sum(), images)
    return features.detach(), gradient


def test_an_encoder_is_folded_as_it_is_loaded_and_keeps_its_digest() -> None:
    """Features of the weights that ship, in float32, and their gradient: rounding apart, on other images."""
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    plain = Encoder("clpdd_resnet14", timm.create_model("clpdd_resnet14", num_classes=0, pretrained=True), 64)
    folded = load_encoder("clpdd_resnet14", device="cpu")
    assert norms(plain) > 0
    assert norms(folded) == 0
    assert folded.digest == plain.digest
    for found, wanted in zip(pixel_gradient(folded, images), pixel_gradient(plain, images), strict=True):
        assert (found - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize(
    ("name", "left"),
    [("clpdd_resnet14", 0), ("tf_efficientnet_lite0", 0), ("mobilenetv2_100", 0), ("densenet121", 62)],
)
def test_every_batch_norm_after_a_convolution_is_folded_and_nothing_changes(name: str, left: int) -> None:
    torch.manual_seed(0)
    model = alive(timm.create_model(name, num_classes=0)).double()  # untrained, they blow rounding up
    count, other = norms(model), noise(seed=2).double()
    features, gradient = pixel_gradient(model, other)
    assert fold_batch_norms(model, noise().double()) == count - left
    assert norms(model) == left  # densenet's others follow a concatenation
    found, found_gradient = pixel_gradient(model, other)  # on another input than that of the proof
    torch.testing.assert_close(found, features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-7, atol=1e-9)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_layout_of_the_weights_stays() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(memory_format=torch.channels_last)
    assert fold_batch_norms(model, noise()) == 1
    weight = model[0].weight  # type: ignore[index]
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_second_folding_finds_nothing_left() -> None:
    model = alive(timm.create_model("clpdd_resnet14", num_classes=0))
    assert fold_batch_norms(model, noise()) > 0
    before = model(noise())
    assert fold_batch_norms(model, noise()) == 0
    assert torch.equal(model(noise()), before)


def test_activation_and_missing_factors_are_kept() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 5, 1), BatchNormAct2d(5)
    )
    alive(model)
    before = model(noise())
    assert before.amin() == 0  # a ReLU
    assert fold_batch_norms(model, noise()) == 2
    torch.testing.assert_close(model(noise()), before, rtol=1e-5, atol=1e-5)


Layer = Callable[[Tensor], Tensor]
Way = Callable[[Layer, Layer, Tensor], Tensor]


class Odd(nn.Module):
    """A convolution, a batch norm, and a forward that folding would change."""

    def __init__(self, forward: Way, running: bool = True) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3, track_running_stats=running)
        self.way = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.way(self.convolution, self.norm, images)


def used_twice(convolution: Layer, norm: Layer, x: Tensor) -> Tensor:
    x = convolution(x)
    return norm(x) + x


def called_twice(convolution: Layer, norm: Layer, x: Tensor) -> Tensor:
    return norm(convolution(convolution(x)))


def changed_between(convolution: Layer, norm: Layer, x: Tensor) -> Tensor:
    return norm(convolution(x).relu_())


def reads_the_norm(convolution: Layer, norm: Any, x: Tensor) -> Tensor:
    return x.mul(1) if norm.running_var is None else norm(convolution(x))


def insists_on_the_norm(convolution: Layer, norm: Any, x: Tensor) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    normalised: Tensor = norm(convolution(x))
    return normalised


def not_after(convolution: Layer, norm: Layer, x: Tensor) -> Tensor:
    return convolution(norm(x))


@pytest.mark.parametrize(
    "way", [used_twice, called_twice, changed_between, reads_the_norm, insists_on_the_norm, not_after]
)
def test_what_folding_would_change_is_left_as_it_is(way: Way) -> None:
    model = alive(Odd(way))
    before = model(noise())
    assert fold_batch_norms(model, noise()) == 0
    assert torch.equal(model(noise()), before)
    assert norms(model) == 1


def test_a_norm_of_the_batch_itself_is_left() -> None:
    model = alive(Odd(lambda convolution, norm, x: norm(convolution(x)), running=False))
    assert fold_batch_norms(model, noise()) == 0


def test_a_pair_that_cannot_be_folded_does_not_keep_the_others() -> None:
    model = alive(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), Odd(used_twice)))
    before = model(noise())
    assert fold_batch_norms(model, noise()) == 1
    torch.testing.assert_close(model(noise()), before, rtol=1e-5, atol=1e-5)
    assert norms(model) == 1


def test_an_encoder_can_be_loaded_in_inference_mode() -> None:
    with torch.inference_mode():
        assert norms(load_encoder("clpdd_resnet14", device="cpu")) == 0


def test_a_convolution_whose_weights_are_computed_is_left() -> None:
    model = alive(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)))
    before = model(noise())
    assert fold_batch_norms(model, noise()) == 0
    assert torch.equal(model(noise()), before)
