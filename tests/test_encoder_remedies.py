"""What the encoders' messages tell people to do, done: names, weights that cannot be had, settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from timm.models._hub import save_for_hf

from clpdd.catalogue.elsewhere import MODELS, Elsewhere, elsewhere
from clpdd.catalogue.encoders import KNOWN_ENCODERS
from clpdd.cli.cost import encoder_pass
from clpdd.cli.dry_run import dry_run
from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.encoders.building import REFUSALS, channels_last
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.errors import ArtifactError, SettingsError
from clpdd.stages.index import run_index
from clpdd.stages.project import Project
from clpdd.storage.layout import Layout

from .versions import need_hub, need_model


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A hub that is out of reach, and a folder to work in."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(encoder: str, options: dict[str, Any] | None = None, **more: Any) -> Settings:
    return parse_settings({"encoders": [encoder], "encoder_options": {encoder: options} if options else {}} | more)


def load(chosen: Settings, encoder: str) -> Encoder:
    return load_encoder(**chosen.encoder_arguments(encoder), device="cpu")


def advised(message: str) -> dict[str, Any]:
    """The settings that a message gives, as a person would paste them."""
    found = re.search(r"encoder_options: \{.*\}\}", message)
    assert found is not None, message
    told = yaml.safe_load(found[0])["encoder_options"]
    assert isinstance(told, dict)
    return told


def weights(name: str, path: Path, **arguments: Any) -> Path:
    torch.manual_seed(0)
    save_file(timm.create_model(name, **arguments).state_dict(), path)
    return path


# -- weights that cannot be had ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoder", "options"),
    [("test_vit", None), ("mine", {"model": "test_vit.r160_in1k"}), ("mine", {"model": "test_vit"})],
)
def test_missing_weights_name_the_users_encoder_and_the_advice_works(
    encoder: str, options: dict[str, Any] | None, offline: Path
) -> None:
    with pytest.raises(ArtifactError, match=f"the pre-trained weights of '{encoder}' cannot be had") as caught:
        load(settings(encoder, options), encoder)
    told = advised(str(caught.value))
    assert list(told) == [encoder]
    assert told[encoder]["weights"] == "path/to/file.safetensors"
    told[encoder]["weights"] = str(weights("test_vit", offline / "w.safetensors"))
    assert load(settings(encoder, told[encoder]), encoder).dim == 64


def test_a_short_names_missing_weights_keep_its_name(offline: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the pre-trained weights of 'dinov2' cannot be had") as caught:
        load(settings("dinov2"), "dinov2")
    told = advised(str(caught.value))["dinov2"]
    file = weights("vit_base_patch14_dinov2", offline / "w.safetensors", depth=1)
    found = load_encoder(
        "dinov2", model=told["model"], weights=file, image_size=28, device="cpu", arguments={"depth": 1}
    )
    assert found.dim == 768


@pytest.mark.parametrize("given", [None, "mine.safetensors"])
def test_a_hub_id_out_of_reach_is_answered_with_timms_own_name_and_the_weights_given(
    given: str | None, offline: Path
) -> None:
    weights("test_vit", offline / "mine.safetensors")
    options = {"model": "hf-hub:timm/test_vit.r160_in1k"} | ({"weights": given} if given else {})
    with pytest.raises(ArtifactError, match="model of encoder 'mine', cannot be had") as caught:
        load(settings("mine", options), "mine")
    told = advised(str(caught.value))["mine"]
    assert told == {"model": "test_vit.r160_in1k", "weights": given or "path/to/file.safetensors"}
    told["weights"] = "mine.safetensors"
    assert load(settings("mine", told), "mine").dim == 64


def test_another_hub_id_out_of_reach_is_answered_with_a_folder(offline: Path) -> None:
    need_hub()
    with pytest.raises(ArtifactError, match=r"hf download somebody/thing --local-dir path/to/folder") as caught:
        load(settings("mine", {"model": "hf-hub:somebody/thing"}), "mine")
    told = advised(str(caught.value))["mine"]
    save_for_hf(timm.create_model("test_vit"), str(offline / "path/to/folder"), safe_serialization=True)
    assert load(settings("mine", told), "mine").dim == 64


def test_a_folder_without_a_configuration_is_refused_at_the_first_stage(tmp_path: Path) -> None:
    need_hub()
    chosen = settings("mine", {"model": f"local-dir:{tmp_path}"})
    with pytest.raises(SettingsError, match=r"holds no config\.json"):
        run_index(Project(chosen, Layout(tmp_path / "data")))
    save_for_hf(timm.create_model("test_vit"), str(tmp_path), safe_serialization=True)
    run_index(Project(chosen, Layout(tmp_path / "data")))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"must hold config\.json and model\.safetensors"):
        load(chosen, "mine")


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_base_patch14_dinov2.lvd142", r"no weights named .* its weights are vit_base_patch14_dinov2\.lvd142m"),
        ("clpdd_resnet14.tin10", r"its weights are clpdd_resnet14\.tin100"),
        ("botnet50ts_256.a1_in1k", r"it has none, leave the tag out: botnet50ts_256"),
        ("botnet50ts_256", r"timm has no weights for 'botnet50ts_256'; bring a safetensors file"),
        ("vit_base_patch14_dinov22", r"near names: .*dinov2"),
    ],
)
def test_a_misspelt_name_or_tag_is_refused_at_the_first_stage(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=said):
        run_index(Project(settings(name), Layout(tmp_path)))


def test_a_model_without_weights_passes_with_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        run_index(Project(settings("botnet50ts_256"), Layout(tmp_path)))
    run_index(Project(settings("botnet50ts_256", advised(str(caught.value))["botnet50ts_256"]), Layout(tmp_path)))


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("dinov2_vitb14", "dinov2"),
        ("dinov3_vitb16", "dinov3"),
        ("facebook/dinov2-base", "dinov2"),
        ("hf-hub:facebook/dinov2-base", "dinov2"),
        ("openai/clip-vit-base-patch16", "clip"),
        ("clip-vit-base-patch16", "clip"),
        ("ViT-B-16", "clip"),
        ("ViT-B/16", "clip"),
        ("google/siglip2-base-patch16-224", "siglip2"),
        ("facebook/vit-mae-base", "mae"),
        ("moco_v3", "mocov3"),
        ("dino_vitb16", "vit_base_patch16_224.dino"),
        ("ViT-L-14", "vit_large_patch14_clip_224.openai"),
        ("clip_vitb", "vit_base_patch32_clip_224.openai"),
        ("OpenAI/CLIP-ViT-Base-Patch16", "clip"),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(name: str, here: str) -> None:
    found = elsewhere(name)
    assert found is not None
    assert found.name == here
    if not name.startswith("hf-hub:"):
        with pytest.raises(SettingsError, match=f"calls so what is {re.escape(here)} here: write {re.escape(here)}"):
            load_encoder(name, device="cpu")


def test_a_name_of_another_library_means_one_model() -> None:
    for where, models in MODELS.items():
        for here, theirs in models.items():
            assert {elsewhere(there) for there in theirs} <= {Elsewhere(here, library) for library in MODELS}, where


@pytest.mark.parametrize(
    ("name", "model"), [("some/thing", "hf-hub:some/thing"), ("hf-hub:timm/a.b", "hf-hub:timm/a.b")]
)
def test_a_name_that_cannot_name_a_folder_is_answered_with_settings_that_pass(
    name: str, model: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(name)
    told = advised(str(caught.value))
    assert told == {"mine": {"model": model}}
    run_index(Project(settings("mine", told["mine"]), Layout(tmp_path)))
    with pytest.raises(SettingsError, match="calls 'facebook/dinov2-base' what is dinov2 here: write dinov2"):
        settings("facebook/dinov2-base")


def test_every_name_that_is_answered_with_is_one(tmp_path: Path) -> None:
    need_model("vit_small_patch16_dinov3")
    ours = {name for models in MODELS.values() for name in models}
    for name in ours - set(KNOWN_ENCODERS):
        assert name in timm.list_pretrained()
    assert set(KNOWN_ENCODERS) <= ours
    for models in MODELS.values():
        for here, theirs in models.items():
            assert {found.name for found in map(elsewhere, theirs) if found is not None} == {here}
    run_index(Project(settings("dinov2"), Layout(tmp_path)))


def test_a_name_with_a_slash_is_answered_with_the_sources_it_may_be_of() -> None:
    with pytest.raises(SettingsError, match=r"named hf-hub:some/thing, one in a folder local-dir:some/thing"):
        load_encoder("some/thing", device="cpu")


# -- messages that said nothing ----------------------------------------------------------------------------------------


def test_no_refusal_is_a_bare_error_or_speaks_of_a_size_that_none_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (AssertionError(), TypeError("takes no such thing"), RuntimeError()):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(timm, "create_model", refuse)
            with pytest.raises((SettingsError, ArtifactError)) as caught:
                load_encoder("mine", model="test_vit", device="cpu")
        assert "None" not in str(caught.value)
        assert "'mine'" in str(caught.value)
    assert AssertionError in REFUSALS


def test_a_models_own_size_at_which_it_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models.vision_transformer import VisionTransformer

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(VisionTransformer, "forward", fail)
    with pytest.raises(SettingsError, match=r"cannot be used at its own image size, 160 x 160: AssertionError"):
        load_encoder("mine", model="test_vit", untrained=0, device="cpu")


def test_arguments_that_a_model_refuses_are_named() -> None:
    with pytest.raises(SettingsError, match=r"'mine': timm cannot build resnet10t with the arguments \{'depth': 1\}"):
        load_encoder("mine", model="resnet10t", untrained=0, device="cpu", arguments={"depth": 1})


# -- models that were refused or failed without need -------------------------------------------------------------------


def test_weights_of_five_dimensions_keep_their_layout() -> None:
    """LambdaNets convolve over three; what has four dimensions is laid out for convolutions."""
    found = load_encoder("lambda_resnet26t", untrained=0, image_size=64, device="cpu")
    ranks = {value.ndim for value in found.model.state_dict().values()}
    assert {4, 5} <= ranks
    assert bool(torch.isfinite(encode(found, torch.rand(1, 3, 64, 64))).all())
    flat, deep = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv3d(3, 4, 3)
    layer = torch.nn.Sequential(flat, deep)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    channels_last(layer)
    assert flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert deep.weight.is_contiguous()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_costs_of_models_that_compute_with_values_while_they_are_built_are_counted() -> None:
    assert encoder_pass("lambda_resnet26t", 64).dim == 2048
    with pytest.raises(SettingsError, match=r"inception_v3 cannot be used at image size 16: \w"):
        encoder_pass("inception_v3", 16)


@pytest.mark.parametrize(("name", "size"), [("mobileone_s1", 32), ("repvgg_a0", 32), ("lambda_resnet26t", 32)])
def test_a_dry_run_refuses_no_encoder_because_of_its_random_weights(name: str, size: int, tmp_path: Path) -> None:
    chosen = settings(name, {"image_size": size}, methods=["clp"])
    (walk,), _ = dry_run(chosen, tmp_path, tell=lambda _: None)
    assert walk.made["clp"] == (2, 3, size, size)


def test_random_weights_neither_explode_nor_cut_branches_off() -> None:
    for name in ("mobileone_s1", "inception_v3", "repvgg_a0", "resnet18", "convnext_atto"):
        found = load_encoder(name, untrained=0, image_size=96, device="cpu")
        features = encode(found, torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
        assert 1e-3 < float(features.abs().mean()) < 1e3, name
        assert not torch.allclose(features[0], features[1]), name
    again = load_encoder(name, untrained=0, image_size=96, device="cpu")
    assert again.digest == found.digest
    assert load_encoder(name, untrained=1, image_size=96, device="cpu").digest != found.digest
