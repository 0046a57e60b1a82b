"""The digest of a model: told apart is what computes otherwise, and nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from typing import Any

import pytest
import timm
import torch
from torch import nn

from clpdd.encoders.identity import model_digest


def small() -> nn.Sequential:
    torch.manual_seed(0)
    parts = {"conv": nn.Conv2d(3, 4, 3, padding=1), "norm": nn.BatchNorm2d(4), "act": nn.ReLU()}
    return nn.Sequential(OrderedDict(parts))


def test_it_is_the_layers_and_the_weights_in_a_form_that_anyone_can_make() -> None:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    layer.weight.data.fill_(0.5)
    model = nn.Sequential(OrderedDict(conv=layer))
    conv = {
        "dilation": [1, 1],
        "groups": 1,
        "kernel_size": [1, 1],
        "output_padding": [0, 0],
        "padding": [0, 0],
        "padding_mode": "zeros",
        "stride": [1, 1],
    }
    layers = json.dumps([["", "Sequential", {}], ["conv", "Conv2d", conv]], separators=(",", ":"), sort_keys=True)
    weights = b"conv.weight(1, 1, 1, 1)torch.float32" + torch.tensor(0.5).numpy().tobytes()
    assert model_digest(model) == hashlib.sha256(layers.encode() + weights).hexdigest()
    assert (
        model_digest(model, "features=both") == hashlib.sha256(layers.encode() + weights + b"features=both").hexdigest()
    )


def test_how_a_library_prints_a_layer_and_what_idles_in_evaluation_do_not_enter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = model_digest(small())
    monkeypatch.setattr(nn.BatchNorm2d, "extra_repr", lambda self: "another version prints this")
    monkeypatch.setattr(nn.Conv2d, "__repr__", lambda self: "Conv2d!")
    assert model_digest(small()) == before
    idle = small()
    idle.add_module("drop", nn.Dropout(0.5))
    idle.add_module("pre", nn.Identity())
    idle.act.inplace = True  # type: ignore[union-attr]  # a Sequential's parts are plain modules to a type checker
    idle.requires_grad_(False)
    assert model_digest(idle.eval()) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "act", nn.SiLU()),
        lambda model: setattr(model.conv, "stride", (2, 2)),
        lambda model: setattr(model.norm, "eps", 1e-3),
        lambda model: model.conv.weight.data[0, 0, 0, 0].add_(1e-3),
        lambda model: model.norm.running_mean.add_(1.0),
        lambda model: model.double(),
        lambda model: model.add_module("last", nn.ReLU()),
    ],
)
def test_what_computes_otherwise_has_another(change: object) -> None:
    model = small()
    other = copy.deepcopy(model)
    change(other)  # type: ignore[operator]
    assert model_digest(other) != model_digest(model)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.ELU(1.0), nn.ELU(0.1)),
        (nn.Hardtanh(-1, 1), nn.Hardtanh(-0.1, 0.1)),
        (nn.Softplus(1), nn.Softplus(5)),
        (nn.Softmax(1), nn.Softmax(2)),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.AvgPool2d([2, 2], 1), nn.AvgPool2d([3, 3], 1)),  # type: ignore[arg-type]  # timm hands over lists
        (nn.AdaptiveAvgPool2d((1, None)), nn.AdaptiveAvgPool2d((2, None))),
        (nn.PixelShuffle(2), nn.PixelShuffle(4)),
        (nn.Flatten(1), nn.Flatten(2)),
        (nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")),
        (nn.GELU(), nn.GELU("tanh")),
        (nn.Threshold(0.1, 0.0), nn.Threshold(0.1, 1.0)),
    ],
)
def test_layers_without_weights_are_told_apart_by_their_numbers(one: nn.Module, other: nn.Module) -> None:
    assert model_digest(one) != model_digest(other)


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("vit_tiny_patch16_224", {"global_pool": "token"}, {"global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", {"global_pool": "token"}, {"global_pool": "max", "fc_norm": False}),
        ("nf_resnet26", {}, {"alpha": 0.5}),
        ("eva02_tiny_patch14_224", {"depth": 1}, {"depth": 1, "rope_temperature": 100.0}),
        ("eva02_tiny_patch14_224", {"depth": 1}, {"depth": 1, "ref_feat_shape": (8, 8)}),
    ],
)
def test_models_that_differ_by_an_argument_alone_are_told_apart(
    name: str, one: dict[str, Any], other: dict[str, Any]
) -> None:
    def made(arguments: dict[str, Any]) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=0, **arguments)

    first, second = made(one), made(other)
    second.load_state_dict(first.state_dict())
    assert model_digest(first) != model_digest(second)


def test_heads_that_no_weight_shows_are_told_apart() -> None:
    def made(heads: int) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1, embed_dim=48, num_heads=heads
        )

    assert model_digest(made(3)) == model_digest(made(3))
    assert model_digest(made(3)) != model_digest(made(4))
