"""The digest of a model: told apart is what computes otherwise, and nothing else."""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict

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


def test_heads_that_no_weight_shows_are_told_apart() -> None:
    def made(heads: int) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1, embed_dim=48, num_heads=heads
        )

    assert model_digest(made(3)) == model_digest(made(3))
    assert model_digest(made(3)) != model_digest(made(4))
