"""Which image sizes an encoder takes: decided by the model and its weights, measured by what it sees."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from clpdd.cli.cost import encoder_pass
from clpdd.encoders.building import Blueprint
from clpdd.encoders.calling import encode
from clpdd.encoders.coverage import coverage
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.encoders.sight import sight
from clpdd.errors import ArtifactError, SettingsError

from .versions import need_hub, need_model

DINO = "vit_small_patch14_dinov2"


# timm resizes tables of relative positions by code of its own that torch warns of
pytestmark = pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple sequence")


def random(name: str, size: int | None = None, **arguments: Any) -> Encoder:
    return load_encoder("mine", model=name, image_size=size, untrained=0, device="cpu", arguments=arguments)


def saved(name: str, folder: Path, **arguments: Any) -> Path:
    torch.manual_seed(0)
    state = timm.create_model(name, **arguments).state_dict()
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / "w.safetensors")
    return folder / "w.safetensors"


def blind(encoder: Encoder) -> tuple[int, int]:
    """Rows and columns at the end of an image that no feature has a gradient in."""
    image = torch.rand(1, 3, *encoder.shape, generator=torch.Generator().manual_seed(5), requires_grad=True)
    weights = torch.rand(encoder.dim, generator=torch.Generator().manual_seed(6))
    (gradient,) = torch.autograd.grad((encoder(image) * weights).sum(), image)
    seen = gradient.abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero().max(), seen.any(0).nonzero().max()
    return encoder.shape[0] - 1 - int(rows), encoder.shape[1] - 1 - int(columns)


# -- what is seen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "size", "share", "sizes"),
    [
        (DINO, {"depth": 2}, 64, 23.4, (56, 70)),  # 1 - (56 / 64)^2
        ("vit_small_patch16_224", {"depth": 1}, 100, 7.8, (96, 112)),
        ("vit_tiny_patch16_224", {"depth": 2}, 17, 11.4, (16, 32)),
        ("deit_tiny_patch16_224", {"depth": 2}, 224 + 8, 6.8, (224, 240)),
        ("eva02_tiny_patch14_224", {"depth": 2}, 64, 23.4, (56, 70)),
        ("tnt_s_patch16_224", {"depth": 2}, 67, 8.8, (64, 80)),  # its first convolution steps by four pixels
        ("convnext_atto", {}, 35, 16.4, (32, 36)),
    ],
)
def test_a_size_that_blinds_is_refused_and_the_two_nearest_are_named_and_seen_whole(
    name: str, arguments: dict[str, Any], size: int, share: float, sizes: tuple[int, ...]
) -> None:
    with pytest.raises(SettingsError) as caught:
        random(name, size, **arguments)
    said = str(caught.value)
    assert f"at image size {size} does not see the last" in said
    assert f"{share} % of every image" in said
    named = re.search(r"Set encoder_options\.mine\.image_size to (\d+) or (\d+)$", said)
    assert named is not None
    assert tuple(map(int, named.groups())) == sizes
    for whole in sizes:
        assert blind(random(name, whole, **arguments)) == (0, 0)


@pytest.mark.parametrize(
    ("name", "size", "sizes"), [("convnext_atto", 50, (48, 52)), ("convmixer_768_32", 36, (35, 42))]
)
def test_a_few_per_cent_are_warned_of(
    name: str, size: int, sizes: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    found = random(name, size)
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert f"does not see the last {'2 pixels' if size == 50 else 'pixel'} of a side" in said
    assert said.endswith(f"{sizes[0]} or {sizes[1]})")
    assert blind(found) == sight(found).unseen == (size - sizes[0], size - sizes[0])
    caplog.clear()
    for whole in sizes:
        random(name, whole)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("clpdd_resnet14", 33, {}),
        ("test_efficientnet", 45, {}),
        ("test_vit", 70, {"dynamic_img_pad": True}),  # pads its last patch
        ("crossvit_9_240", 100, {}),  # resizes its input itself
        ("swin_tiny_patch4_window7_224", 96, {}),
    ],
)
def test_what_is_seen_whole_is_taken_in_silence(
    name: str, size: int, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    if name.startswith("swin"):  # timm before that model takes weights without a classifier for Swin's first format
        need_model("test_coatnet")
    assert blind(random(name, size, **arguments)) == (0, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("height", "width"), [(20, 17), (16, 16), (31, 30), (9, 40)])
def test_coverage_counts_the_pixels_of_a_grid_of_patches(height: int, width: int) -> None:
    """Patches of 8 pixels, by hand: what is left of the side once whole patches are taken off."""

    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

    found = coverage(features, (height, width))
    assert found.unseen == (height % 8, width % 8)
    assert found.lost == pytest.approx(1 - (height - height % 8) * (width - width % 8) / (height * width))


# -- which models take which sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("test_vit", 96, {}),
        ("flexivit_small", 64, {"depth": 1}),
        ("test_coatnet", 96, {}),
        ("tnt_s_patch16_224", 64, {"depth": 1}),
        ("coat_lite_tiny", 96, {}),
        ("crossvit_9_240", 96, {}),
        ("swin_tiny_patch4_window7_224", 96, {}),
        ("resnet10t", 64, {}),
    ],
)
def test_a_models_own_weights_are_taken_at_another_size_whatever_its_name(
    name: str, size: int, arguments: dict[str, Any], tmp_path: Path
) -> None:
    """As timm takes them: built for the size where the model can be, else as it is."""
    need_model(name)
    file = saved(name, tmp_path, **arguments)
    ours = load_encoder("mine", model=name, weights=file, image_size=size, device="cpu", arguments=arguments)
    assert ours.shape == (size, size)
    more: dict[str, Any] = {"pretrained": True, "num_classes": 0}
    more |= {"pretrained_cfg_overlay": {"file": str(file), "custom_load": False}} | arguments
    try:
        theirs = timm.create_model(name, img_size=size, **more)
    except (TypeError, RuntimeError, AssertionError):
        theirs = timm.create_model(name, **more)
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()((images - ours.mean) / ours.std)
    torch.testing.assert_close(encode(ours, images), expected, rtol=1e-3, atol=1e-5)
    assert encoder_pass(name, size).size == size


@pytest.mark.parametrize(("name", "size"), [("mixer_s32_224", 96), ("convit_tiny", 128), ("levit_128s", 96)])
def test_a_size_that_a_models_weights_are_not_for_is_refused_and_leaving_it_out_works(
    name: str, size: int, tmp_path: Path
) -> None:
    file = saved(name, tmp_path)
    with pytest.raises(
        SettingsError, match=rf"'mine' \({name}\) cannot be used at image size {size} .*eave .*it out|image_size out"
    ):
        load_encoder("mine", model=name, weights=file, image_size=size, device="cpu")
    assert load_encoder("mine", model=name, weights=file, device="cpu").size == 224


def test_weights_of_another_size_are_no_excuse_for_weights_of_another_model(tmp_path: Path) -> None:
    file = saved("test_vit2", tmp_path)
    with pytest.raises(ArtifactError, match="does not fit the model"):
        load_encoder("mine", model="test_vit", weights=file, image_size=96, device="cpu")


def folder_of(name: str, folder: Path, **arguments: Any) -> str:
    """A model saved as timm saves one for the hub; its name as ``encoder_options`` takes it."""
    torch.manual_seed(0)
    save_for_hf(timm.create_model(name, **arguments), str(folder), model_args=arguments, safe_serialization=True)
    return f"local-dir:{folder}"


@pytest.mark.parametrize(("name", "arguments"), [("test_vit", {}), (DINO, {"depth": 1}), ("resnet10t", {})])
@pytest.mark.parametrize("size", [None, 112])
def test_a_model_in_a_folder_is_taken_at_its_own_size_and_at_another(
    name: str, arguments: dict[str, Any], size: int | None, tmp_path: Path
) -> None:
    need_hub()
    architecture = folder_of(name, tmp_path, **arguments)
    found = load_encoder("mine", model=architecture, image_size=size, device="cpu")
    plain = load_encoder(
        "mine",
        model=name,
        weights=tmp_path / "model.safetensors",
        image_size=size,
        device="cpu",
        arguments=arguments,
    )
    assert (found.digest, found.shape) == (plain.digest, plain.shape)
    with_file = load_encoder(
        "mine", model=architecture, weights=tmp_path / "model.safetensors", image_size=size, device="cpu"
    )
    assert with_file.digest == plain.digest


def test_a_size_is_proven_with_the_weights_and_not_by_the_constructor(tmp_path: Path) -> None:
    """EVA's class would be built for any size; weights that do not carry over make the model as it is the next try."""
    candidates = list(Blueprint("mine", "convit_tiny", None, 128, 0).candidates())
    assert [shape for _, shape in candidates] == [(128, 128)]
    assert len(list(Blueprint("mine", "test_vit", None, 96, 0).candidates())) == 2
    assert len(list(Blueprint("mine", "test_vit", None, 160, 0).candidates())) == 1


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [("test_vit", 100, ("96", "112")), ("dla46x_c", 133, ("128", "160")), ("test_coatnet", 100, ())],
)
def test_a_size_that_a_model_cannot_run_at_is_refused_with_the_nearest_that_it_can(
    name: str, size: int, sizes: tuple[str, ...]
) -> None:
    need_model(name)
    with pytest.raises(SettingsError, match=rf"cannot be used at image size {size} with its weights: \w") as caught:
        random(name, size)
    named = re.search(r"image_size to (\d+)(?: or (\d+))?, or leave it out", str(caught.value))
    assert named is not None
    if sizes:
        assert named.groups() == sizes
    for other in named.groups():
        if other is not None:
            random(name, int(other))
