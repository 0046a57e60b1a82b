"""Depthwise convolutions of frozen encoders: the same outputs, and gradients that are quick and good in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clpdd.encoders.calling import encoder_call
from clpdd.encoders.convolutions import Depthwise, widen_depthwise
from clpdd.encoders.loading import load_encoder

SLOW = [
    (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv2d, {"kernel_size": 5, "stride": (1, 2), "padding": 2, "bias": False}),
    (nn.Conv2d, {"kernel_size": 3, "dilation": 2, "padding": 2}),
    (Conv2dSame, {"kernel_size": 3, "stride": 2}),
]


class Seen(TorchDispatchMode):
    """Notes what convolutions' gradients are computed of, and what is overwritten by an activation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has not annotated it
        self.gradients: list[tuple[torch.dtype, int]] = []
        self.overwritten: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name == "aten::convolution_backward":
            strided = max(*args[4], *args[6]) > 1  # stride, dilation
            self.gradients.append((args[0].dtype, args[9] if strided else 1))  # groups
        if name.rstrip("_") in ("aten::relu", "aten::clamp", "aten::clamp_min", "aten::hardtanh"):
            self.overwritten += [args[0].dtype] if name.endswith("_") else []
        return func(*args, **(kwargs or {}))


def made(kind: type[nn.Conv2d], how: dict[str, Any], groups: int = 6) -> nn.Conv2d:
    torch.manual_seed(0)
    return kind(6, 6, groups=groups, **how).requires_grad_(False)


def passed(model: nn.Module, dtype: torch.dtype, side: int = 11) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 6, side, side, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model(x)
    (gradient,) = torch.autograd.grad(output.float().square().sum(), x)
    return output.detach(), gradient


@pytest.mark.parametrize(("kind", "how"), SLOW)
def test_outputs_keep_every_bit_and_gradients_come_nearer_to_the_exact_ones(
    kind: type[nn.Conv2d], how: dict[str, Any]
) -> None:
    model = nn.Sequential(made(kind, how))
    plain, exact, half = model[0], passed(model, torch.float32), passed(model, torch.bfloat16)
    widen_depthwise(model)
    assert isinstance(model[0], Depthwise)
    assert all(map(torch.equal, passed(model, torch.float32), exact))
    output, gradient = passed(model, torch.bfloat16)
    assert torch.equal(output, half[0])
    assert output.dtype == torch.bfloat16
    off = (gradient - exact[1]).norm()
    assert off <= (half[1] - exact[1]).norm()
    assert off <= 0.02 * exact[1].norm()
    assert model[0].convolution is plain


@pytest.mark.parametrize(("kind", "how"), SLOW)
def test_gradients_can_be_derived_again(kind: type[nn.Conv2d], how: dict[str, Any]) -> None:
    x, weight = (torch.randn(1, 6, 9, 9).requires_grad_() for _ in range(2))
    second: list[Tensor] = []
    for model in (nn.Sequential(made(kind, how)), nn.Sequential(made(kind, how))):
        if second:
            widen_depthwise(model)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(x).float()
        (first,) = torch.autograd.grad(output.pow(3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad((first * weight).sum(), x)[0])
    assert (second[1] - second[0]).norm() <= 0.03 * second[0].norm()


def test_weights_that_are_trained_get_their_gradient() -> None:
    trained = made(nn.Conv2d, {"kernel_size": 3, "stride": 2}).requires_grad_()
    model = nn.Sequential(trained)
    widen_depthwise(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 6, 9, 9).requires_grad_()).float().sum().backward()
    assert trained.weight.grad is not None


def test_only_what_is_slow_is_wrapped() -> None:
    class Scaled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) / 2

    strided = {"kernel_size": 3, "stride": 2}
    model = nn.Sequential(
        made(nn.Conv2d, {"kernel_size": 3}),  # no stride
        made(nn.Conv2d, strided, groups=2),  # groups of several channels
        made(nn.Conv2d, strided, groups=1),
        made(nn.Conv2d, strided | {"padding_mode": "reflect", "padding": 1}),
        made(Scaled, strided),
        nn.Conv2d(6, 12, 3, stride=2, groups=6),  # several outputs of a channel
    )
    kinds = [type(module) for module in model]
    widen_depthwise(model)
    assert [type(module) for module in model] == kinds


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv2_100", "resnet10t"])
def test_an_encoder_in_bfloat16_does_nothing_slow(name: str) -> None:
    encoder = load_encoder(name, image_size=64, untrained=0, device="cpu")
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features = encoder_call(encoder, "bfloat16")
    with Seen() as seen:
        torch.autograd.grad(features(pixels).sum(), pixels)
    assert seen.gradients
    assert torch.bfloat16 in {dtype for dtype, _ in seen.gradients}
    assert not any(dtype == torch.bfloat16 and groups > 1 for dtype, groups in seen.gradients)
    assert torch.bfloat16 not in seen.overwritten
    with Seen() as seen:
        encoder_call(encoder, "float32")(torch.rand(1, 3, 64, 64))
    assert seen.overwritten  # what is quick in place stays so
