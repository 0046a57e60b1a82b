"""Any timm model as a frozen encoder: timm's own transforms and weights, and refusals of everything else."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config
from torchvision import transforms as tv

from clpdd.catalogue.encoders import KNOWN_ENCODERS
from clpdd.config.encoder import EncoderOptions
from clpdd.config.loading import parse_settings
from clpdd.encoders.architectures import default_cfgs
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.encoders.preprocessing import Preprocess
from clpdd.encoders.weights import load_weights
from clpdd.errors import ArtifactError, ResourceError, SettingsError

from .versions import need_hub, need_model


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def vit_weights(path: Path, image_size: int = 224) -> dict[str, torch.Tensor]:
    """Weights of a random tiny ViT with its classifier, saved as safetensors."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=image_size)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, path)
    return state


# -- names and weights that cannot be had ------------------------------------------------------------------------------


def test_an_unknown_model_lists_near_names() -> None:
    with pytest.raises(SettingsError, match=r"no model named 'vit_base_patch14_dinov22'; near names: .*dinov2"):
        load_encoder("vit_base_patch14_dinov22", device="cpu")
    with pytest.raises(SettingsError, match=r"clpdd_resnet14"):
        load_encoder("clpdd_resnet15", device="cpu")


def test_weights_that_cannot_be_downloaded_say_how_to_bring_a_file(tmp_path: Path) -> None:
    """In a process of its own, since the hub reads its settings when it is imported."""
    need_hub()
    script = """
import sys
from clpdd.encoders.loading import load_encoder
from clpdd.errors import ArtifactError
try:
    load_encoder("vit_small_patch14_dinov2.lvd142m", device="cpu")
except ArtifactError as error:
    print(error)
"""
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pre-trained weights of 'vit_small_patch14_dinov2.lvd142m' cannot be had" in done.stdout
    assert "encoder_options: {vit_small_patch14_dinov2.lvd142m: {weights: path/to/file.safetensors}}" in done.stdout


def test_a_device_that_is_absent_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match="CUDA devices"):
        load_encoder("clpdd_resnet14", device="cuda:99")


# -- weights files -----------------------------------------------------------------------------------------------------


class _Payload:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_weights_that_are_cut_off_are_called_so(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_file({"weight": torch.zeros(1000)}, whole)
    data = whole.read_bytes()
    for length in (20, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(ArtifactError, match=r"cut\.safetensors is cut off or damaged .*: fetch or copy it again"):
            load_encoder("clpdd_resnet14", weights=cut, device="cpu")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin"])
def test_a_pickle_is_refused_and_never_executed(tmp_path: Path, name: str) -> None:
    proof, plain, torch_file = tmp_path / "executed", tmp_path / name, tmp_path / f"torch-{name}"
    plain.write_bytes(pickle.dumps({"conv1.0.weight": _Payload(proof)}))
    torch.save({"conv1.0.weight": _Payload(proof)}, torch_file)
    for file in (plain, torch_file):
        with pytest.raises(ArtifactError, match=r"is not a safetensors file .*Pickled checkpoints .* are refused"):
            load_encoder("clpdd_resnet14", weights=file, device="cpu")
    assert not proof.exists()
    pickle.loads(plain.read_bytes())  # noqa: S301  (the payload works, so the refusal is what kept it from running)
    assert proof.exists()


def test_missing_unexpected_and_misshapen_keys_are_named(tmp_path: Path) -> None:
    model = timm.create_model("clpdd_resnet14", pretrained=True, num_classes=0)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    for change, expected in (
        ({"conv1.0.weight": None}, r"1 missing \(conv1\.0\.weight\), 0 unexpected, 0 of another shape"),
        ({"extra": torch.zeros(1)}, r"0 missing, 1 unexpected \(extra\), 0 of another shape"),
        ({"bn1.weight": torch.zeros(7)}, r"1 of another shape \(bn1\.weight \(7,\) instead of \(32,\)\)"),
    ):
        changed = {key: value for key, value in (state | change).items() if value is not None}
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(ArtifactError, match=expected):
            load_encoder("clpdd_resnet14", weights=tmp_path / "changed.safetensors", device="cpu")


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "folder", "absent"])
def test_damaged_weights_are_an_artifact_error(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "weights.safetensors"
    vit_weights(file)
    data = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    elif damage != "absent":
        file.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"not weights"}[damage])
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        load_encoder("vit_tiny_patch16_224", weights=file, device="cpu")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    vit_weights(tmp_path / "vit.safetensors")
    for name in ("clpdd_resnet14", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"):
        with pytest.raises(ArtifactError, match="does not fit the model"):
            load_encoder(name, weights=tmp_path / "vit.safetensors", device="cpu")


# -- models ------------------------------------------------------------------------------------------------------------


def test_the_shipped_model_is_a_timm_model_with_weights() -> None:
    model = timm.create_model("clpdd_resnet14", pretrained=True).eval()
    assert model.num_classes == 100
    again = timm.create_model("clpdd_resnet14.tin100", pretrained=True, num_classes=0)
    for key, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    file = Path(str(default_cfgs["clpdd_resnet14"].default.file))
    assert set(load_file(file)) == set(model.state_dict())
    assert "clpdd_resnet14" in timm.list_models("clpdd*")


def test_weights_from_a_file_are_those_of_the_name(tmp_path: Path, encoder: Encoder) -> None:
    """The same file given by path, classifier and all, makes the same encoder."""
    file = str(default_cfgs["clpdd_resnet14"].default.file)
    loaded = load_encoder("mine", model="clpdd_resnet14", weights=file, device="cpu")
    assert loaded.digest == encoder.digest


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (50, 130), (333, 65)])
@pytest.mark.parametrize("name", ["clpdd_resnet14", "resnet10t", "vit_tiny_patch16_224", "vit_base_patch16_siglip_224"])
def test_the_transform_is_timms(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    small: dict[str, Any] = {"depth": 1} if "base" in name else {}
    model = timm.create_model(name, pretrained=False, num_classes=0, **small)
    made = Encoder(name, model, resolve_data_config({}, model=model)["input_size"][-1])
    theirs = create_transform(**resolve_data_config({}, model=model), is_training=False)
    tensor = next(i for i, step in enumerate(theirs.transforms) if "ToTensor" in type(step).__name__)
    until = tv.Compose([*theirs.transforms[:tensor], tv.PILToTensor()])
    image = picture(*size)
    assert torch.equal(made.transform(image), until(image))
    preprocess = Preprocess(made.resized, made.size, made.interpolation, made.squash)  # what decoding processes do
    assert np.array_equal(preprocess(image), until(image).numpy())
    ours = encode(made, made.transform(image)[None])
    with torch.no_grad():
        torch.testing.assert_close(ours, model.eval()(theirs(image)[None]), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_pixels_and_no_parameter(encoder: Encoder) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    encoder(images).square().sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert bool((images.grad.abs().sum((1, 2, 3)) > 0).all())
    assert not any(p.requires_grad or p.grad is not None for p in encoder.parameters())
    assert not encoder.model.training


def test_local_vit_weights_at_another_image_size(tmp_path: Path) -> None:
    """Position embeddings are resized as timm resizes them when it loads the same file itself."""
    state = vit_weights(tmp_path / "vit.safetensors")
    small = load_encoder(
        "vit", model="vit_tiny_patch16_224", weights=tmp_path / "vit.safetensors", image_size=96, device="cpu"
    )
    assert (small.size, small.dim) == (96, 192)
    own = small.model.state_dict()
    assert state["pos_embed"].shape == (1, 197, 192)
    assert own["pos_embed"].shape == (1, 37, 192)
    overlay = {"file": str(tmp_path / "vit.safetensors"), "custom_load": False}
    theirs = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, num_classes=0, img_size=96, pretrained_cfg_overlay=overlay
    ).eval()
    torch.testing.assert_close(own["pos_embed"], theirs.state_dict()["pos_embed"])
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    features = encode(small, images)
    assert features.shape == (2, 192)
    assert bool(torch.isfinite(features).all())
    normalised = (images - small.mean) / small.std
    with torch.no_grad():
        torch.testing.assert_close(features, theirs(normalised), rtol=1e-4, atol=1e-5)


def test_an_image_size_the_model_refuses_is_a_setting(tmp_path: Path) -> None:
    vit_weights(tmp_path / "vit.safetensors")
    with pytest.raises(SettingsError, match="image_size"):
        load_encoder("vit_tiny_patch16_224", weights=tmp_path / "vit.safetensors", image_size=4, device="cpu")


def test_load_weights_keeps_the_classifier_of_a_model_that_has_one(tmp_path: Path) -> None:
    state = vit_weights(tmp_path / "vit.safetensors")
    model = timm.create_model("vit_tiny_patch16_224")
    load_weights(model, tmp_path / "vit.safetensors")
    assert torch.equal(model.state_dict()["head.weight"], state["head.weight"])


# -- kinds of features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("test_vit", {}),  # norm before the pooling
        ("test_vit", {"global_pool": "avg"}),  # norm after it
        ("vit_small_patch14_reg4_dinov2", {"depth": 1, "img_size": 56}),  # registers are no patches
        ("eva02_tiny_patch14_224", {"depth": 1, "img_size": 56}),
    ],
)
def test_kinds_of_features_are_the_models_own_poolings(name: str, small: dict[str, Any]) -> None:
    """Each kind against a direct computation from the tokens; the model's own pooling is one of them."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, pretrained=False, num_classes=0, **small).eval()
    size = small.get("img_size", 160)
    made = {kind: Encoder(name, model, size, kind) for kind in ("default", "class_token", "mean_patch", "both")}
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = {kind: encode(encoder, images) for kind, encoder in made.items()}
    with torch.no_grad():
        tokens = model.forward_features((images - made["both"].mean) / made["both"].std)
        expected = {
            "class_token": model.fc_norm(tokens[:, 0]),
            "mean_patch": model.fc_norm(tokens[:, model.num_prefix_tokens :].mean(1)),
        }
    own = "mean_patch" if model.global_pool == "avg" else "class_token"
    torch.testing.assert_close(found["default"], found[own])
    for kind, value in expected.items():
        torch.testing.assert_close(found[kind], value)
    assert torch.equal(found["both"], torch.cat([found["class_token"], found["mean_patch"]], 1))
    assert made["both"].dim == 2 * made["default"].dim
    assert len({encoder.digest for encoder in made.values()}) == 4


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("clpdd_resnet14", "mean_patch", "it has no tokens: set features to default"),
        ("clpdd_resnet14", "both", "it has no tokens: set features to default"),
        ("vit_tiny_patch16_224", "patches", "must be one of default, class_token, mean_patch, both"),
    ],
)
def test_features_that_a_model_has_not_are_refused(name: str, kind: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load_encoder(name, features=kind, device="cpu", untrained=0)


def test_a_model_without_a_class_token_keeps_its_mean_patch() -> None:
    small: dict[str, Any] = {"depth": 1, "img_size": 32}
    made = load_encoder(
        "vit_base_patch16_siglip_224",
        image_size=32,
        features="mean_patch",
        device="cpu",
        untrained=0,
        arguments={"depth": 1},
    )
    assert made.dim == 768
    model = timm.create_model("vit_base_patch16_siglip_224", pretrained=False, num_classes=0, **small)
    with pytest.raises(ValueError, match="no class token: set features to default or mean_patch"):
        Encoder("siglip", model, 32, "class_token")


SMALL_CLIP: dict[str, Any] = {
    "name": "vit_base_patch32_clip_224.openai",
    "device": "cpu",
    "untrained": 0,
    "arguments": {"depth": 1, "embed_dim": 64, "num_heads": 2},
}


def test_projected_features_are_the_class_token_through_the_models_own_last_layer() -> None:
    before, after = load_encoder(**SMALL_CLIP), load_encoder(**SMALL_CLIP, features="projected")
    assert (before.dim, after.dim) == (64, 512)
    model: Any = after.model
    before.model.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(after(images), model.head(before(images)))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch32_clip_224.openai_ft_in1k"])
def test_what_gives_classes_is_not_taken_for_projected(name: str) -> None:
    with pytest.raises(SettingsError, match=r"no projection .* take a CLIP model, e\.g\. vit_base_patch32_clip_224"):
        load_encoder(name, features="projected", device="cpu", untrained=0)


def test_imagenet_normalisation_makes_another_encoder_and_is_refused_beside_members() -> None:
    own, theirs = load_encoder(**SMALL_CLIP), load_encoder(**SMALL_CLIP, normalisation="imagenet")
    assert own.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert theirs.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert theirs.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert own.digest != theirs.digest
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    as_theirs = (images - theirs.mean) / theirs.std * own.std + own.mean
    torch.testing.assert_close(theirs(images), own(as_theirs), rtol=1e-4, atol=1e-4)
    with pytest.raises(SettingsError, match="normalisation is for a single encoder"):
        EncoderOptions(members={"a": 1.0, "b": 1.0}, normalisation="imagenet")
    with pytest.raises(SettingsError, match="crop_pct is for a single encoder"):
        EncoderOptions(members={"a": 1.0, "b": 1.0}, crop_pct=0.875)
    with pytest.raises(SettingsError, match="normalisation is 'theirs'; it must be one of own, imagenet"):
        load_encoder(**SMALL_CLIP, normalisation="theirs")


# -- short names -------------------------------------------------------------------------------------------------------


def test_short_names_agree_with_the_presets_and_with_timm() -> None:
    folder = Path(__file__).parents[1] / "clpdd" / "presets" / "encoders"
    for name, known in KNOWN_ENCODERS.items():
        need_model(known.model)
        options = yaml.safe_load((folder / f"{name}.yaml").read_text())["encoder_options"][name]
        weights = options.pop("weights", None)
        assert known.own_weights == (weights is not None)
        said = EncoderOptions(**options)
        assert said == EncoderOptions(model=known.model, image_size=known.image_size, features=known.features)
        assert EncoderOptions(weights=weights).completed(name) == said.model_copy(update={"weights": weights})


def test_a_short_name_builds_its_model_and_never_with_the_weights_of_another() -> None:
    need_model(KNOWN_ENCODERS["dinov3"].model)
    made = load_encoder("dinov3", image_size=32, untrained=0, device="cpu", arguments={"depth": 1})
    assert (made.name, made.size, made.features) == ("dinov3", 32, "class_token")
    with pytest.raises(SettingsError, match=r"encoder_options\.mocov3\.weights is needed"):
        load_encoder("mocov3", device="cpu")
    with pytest.raises(SettingsError, match=r"encoder_options\.mocov3\.weights is needed"):
        parse_settings({"encoders": ["mocov3"]}).options("mocov3")
