"""Weights files as others write them: timm's own with a classifier, prefixes of training, names of transformers."""

from __future__ import annotations

import logging
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clpdd.encoders.building import channels_last, settle
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.encoders.weights import load_weights
from clpdd.errors import ArtifactError

from .versions import need_model

State = dict[str, Tensor]
VIT = "vit_small_patch14_dinov2"
SMALL: dict[str, Any] = {"depth": 2}


def saved(state: State, path: Path) -> Path:
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return path


def published(name: str, path: Path) -> Path:
    """A file as timm publishes it: the whole model, classifier and all."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    settle(model, timm.data.resolve_data_config({}, model=model)["input_size"][-2:])
    return saved(model.state_dict(), path)


@pytest.fixture(scope="module")
def vit() -> State:
    torch.manual_seed(3)
    return {k: v.contiguous().clone() for k, v in timm.create_model(VIT, num_classes=0, **SMALL).state_dict().items()}


def load(state: State, folder: Path, size: int = 56) -> Encoder:
    file = saved(state, folder / "w.safetensors")
    return load_encoder("mine", model=VIT, weights=file, image_size=size, device="cpu", arguments=SMALL)


# -- classifiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet10t",  # fc
        "test_convnext",  # head.fc beside head.norm, which stays
        "test_mambaout",
        "test_efficientnet",  # classifier
        "test_nfnet",
        "test_coatnet",
        "deit_tiny_distilled_patch16_224",  # head and head_dist
        "levit_128s",  # a batch norm goes with the head
        "efficientformerv2_s0",
        "xcit_nano_12_p16_224",
        "davit_tiny",
        "repvit_m1",
    ],
)
def test_timms_own_file_is_taken_and_gives_timms_features(name: str, tmp_path: Path) -> None:
    need_model(name)
    file = published(name, tmp_path / "w.safetensors")
    ours = load_encoder("mine", model=name, weights=file, device="cpu")
    overlay = {"file": str(file), "custom_load": False}
    model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    theirs = Encoder(name, channels_last(model), ours.shape)  # random weights enlarge what another layout rounds
    images = torch.rand(1, 3, *ours.shape, generator=torch.Generator().manual_seed(0))
    expected = encode(theirs, images)
    assert bool(expected.any())
    torch.testing.assert_close(encode(ours, images), expected)


def test_a_classifier_of_any_width_is_left_out_and_nothing_else(vit: State, tmp_path: Path) -> None:
    plain = load(vit, tmp_path)
    head = {"head.weight": torch.zeros(7, 384), "head.bias": torch.zeros(7)}
    assert load(vit | head, tmp_path).digest == plain.digest
    for extra in ("head.mlp.0.weight", "linear_head.weight", "blocks.2.norm1.weight", "norm2.weight"):
        with pytest.raises(ArtifactError, match=rf"1 unexpected \({re.escape(extra)}\)"):
            load(vit | head | {extra: torch.zeros(7, 384)}, tmp_path)
    with pytest.raises(ArtifactError, match=r"1 missing \(norm\.bias\), 0 unexpected"):
        load({key: value for key, value in (vit | head).items() if key != "norm.bias"}, tmp_path)


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("resnet34", "resnet18"),  # deeper: nothing is missing, too much is there
        ("resnet18", "resnet34"),
        ("test_resnet", "resnet18"),
        ("resnet10t", "resnet18"),
        ("test_vit", "test_vit2"),
        ("test_convnext", "test_convnext2"),
    ],
)
def test_weights_of_another_depth_or_family_are_refused(file: str, model: str, tmp_path: Path) -> None:
    path = saved(timm.create_model(file).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="does not fit the model") as caught:
        load_encoder("mine", model=model, weights=path, device="cpu")
    assert "python -c" not in str(caught.value)  # nothing is advised by which they would be made to fit


def test_without_a_known_classifier_nothing_is_left_out(vit: State, tmp_path: Path) -> None:
    model = timm.create_model(VIT, num_classes=0, **SMALL)
    file = saved(vit | {"head.weight": torch.zeros(7, 384)}, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match="1 unexpected"):
        load_weights(model, file)


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "backbone.",
        "model.",
        "_orig_mod.",
        "teacher.backbone.",
        "module.backbone.",
        "_orig_mod.module.",
        "model.backbone.",
    ],
)
def test_prefixes_of_training_are_stripped_and_it_is_said(
    prefix: str, vit: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(vit, tmp_path)
    assert not caplog.records
    with caplog.at_level(logging.INFO, "clpdd"):
        found = load({prefix + key: value for key, value in vit.items()}, tmp_path)
    assert found.digest == plain.digest
    said = [record.message for record in caplog.records if record.name.startswith("clpdd")]
    assert said == [f"{tmp_path / 'w.safetensors'}: its weights are taken without the prefix {prefix!r} of its names"]


def follow(advice: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Do what the command that a message ends with does: its code as a shell would hand it over, in this process."""
    command = shlex.split(advice[advice.index("python -c") :])
    assert command[:2] == ["python", "-c"]
    assert len(command) == 3
    monkeypatch.chdir(folder)
    exec(command[2], {})
    return folder / "stripped.safetensors"


@pytest.mark.parametrize(
    ("before", "beside", "said"),
    [
        ("encoder.", {}, "begin with 'encoder.' would fit"),
        ("net.trunk.", {"net.queue": torch.zeros(4)}, "begin with 'net.trunk.' would fit"),
        ("backbone.", {"projector.weight": torch.zeros(3)}, "begin with 'backbone.' would fit"),
        ("teacher.backbone.", {"teacher.dino_head.mlp.0.weight": torch.zeros(3)}, "'teacher.backbone.' would fit"),
        ("", {"linear_head.weight": torch.zeros(7, 384)}, "too much lies under linear_head"),
        ("", {"dino_head.0.weight": torch.zeros(3), "ibot.w": torch.zeros(3)}, "too much lies under dino_head, ibot"),
    ],
)
def test_what_would_fit_in_part_is_refused_with_a_command_that_saves_that_part(
    before: str, beside: State, said: str, vit: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = load(vit, tmp_path)
    with pytest.raises(ArtifactError, match=said) as caught:
        load({before + key: value for key, value in vit.items()} | beside, tmp_path)
    stripped = follow(str(caught.value), monkeypatch, tmp_path)
    found = load_encoder("mine", model=VIT, weights=stripped, image_size=56, device="cpu", arguments=SMALL)
    assert found.digest == plain.digest


def test_a_teacher_is_advised_before_its_student(vit: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {f"student.backbone.{key}": value + 1 for key, value in vit.items()}
    both |= {f"teacher.backbone.{key}": value for key, value in vit.items()}
    plain = load(vit, tmp_path)
    with pytest.raises(ArtifactError, match=r"begin with 'teacher\.' would fit") as caught:
        load(both, tmp_path)
    assert load(load_file(follow(str(caught.value), monkeypatch, tmp_path)), tmp_path).digest == plain.digest


def test_a_prefix_under_which_nothing_fits_is_not_advised(vit: State, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        load({f"encoder.{key}": value for key, value in vit.items() if key != "norm.bias"}, tmp_path)
    assert "would fit" not in str(caught.value)


_DINO = {
    r"^cls_token": "embeddings.cls_token",
    r"^pos_embed": "embeddings.position_embeddings",
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^norm\.": "layernorm.",
    r"^blocks\.": "encoder.layer.",
    r"attn\.proj": "attention.output.dense",
    r"attn\.(query|key|value)": r"attention.attention.\1",
    r"ls([12])\.gamma": r"layer_scale\1.lambda1",
}
_VIT = _DINO | {
    r"norm1": "layernorm_before",
    r"norm2": "layernorm_after",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}
_CLIP = {
    r"^cls_token": "vision_model.embeddings.class_embedding",
    r"^pos_embed": "vision_model.embeddings.position_embedding.weight",
    r"^patch_embed\.proj": "vision_model.embeddings.patch_embedding",
    r"^norm_pre": "vision_model.pre_layrnorm",
    r"^norm\.": "vision_model.post_layernorm.",
    r"^blocks\.": "vision_model.encoder.layers.",
    r"attn\.proj": "self_attn.out_proj",
    r"attn\.(q|k|v)[a-z]+": r"self_attn.\1_proj",
    r"norm([12])": r"layer_norm\1",
}


def as_transformers(state: State, names: dict[str, str]) -> State:
    """timm's weights by the names of ``transformers``, written anew here: queries, keys and values apart."""
    apart: State = {}
    for key, value in state.items():
        if ".qkv." in key:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                apart[key.replace("qkv", part)] = piece
        else:
            apart[key] = value
    out: State = {}
    for key, value in apart.items():
        for ours, theirs in names.items():
            key = re.sub(ours, theirs, key)
        out[key] = value
    return out


@pytest.mark.parametrize(
    ("model", "names", "before", "more"),
    [
        (VIT, _DINO, "", {"embeddings.mask_token": torch.zeros(1, 384)}),
        (VIT, _DINO, "module.", {}),
        ("vit_small_patch16_224", _VIT, "", {"pooler.dense.weight": torch.zeros(384, 384)}),
        ("vit_small_patch16_224", _VIT, "vit.", {}),
        ("vit_base_patch32_clip_224", _CLIP, "", {"vision_model.embeddings.position_ids": torch.arange(50)[None]}),
    ],
)
def test_names_of_transformers_are_understood_and_it_is_said(
    model: str, names: dict[str, str], before: str, more: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    state = timm.create_model(model, num_classes=0, **SMALL).state_dict()
    theirs = {before + key: value for key, value in (as_transformers(state, names) | more).items()}
    if names is _CLIP:
        theirs["vision_model.embeddings.class_embedding"] = theirs["vision_model.embeddings.class_embedding"][0, 0]
        position = "vision_model.embeddings.position_embedding.weight"
        theirs[position] = theirs[position][0]
    plain = load_encoder(
        "mine", model=model, weights=saved(state, tmp_path / "p.safetensors"), device="cpu", arguments=SMALL
    )
    file = saved(theirs, tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO, "clpdd"):
        found = load_encoder("mine", model=model, weights=file, device="cpu", arguments=SMALL)
    assert found.digest == plain.digest
    assert any("by the names of transformers" in record.message for record in caplog.records)


def test_registers_of_transformers_are_taken(tmp_path: Path) -> None:
    """Their class token has a position, which timm's models have added to it already."""
    name = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(1)
    state = timm.create_model(name, num_classes=0, **SMALL).state_dict()
    theirs = as_transformers(state, _DINO)
    theirs["embeddings.register_tokens"] = theirs.pop("reg_token")
    theirs["embeddings.mask_token"] = torch.zeros(1, 384)
    shift = torch.randn(1, 1, 384)
    theirs["embeddings.cls_token"] = theirs["embeddings.cls_token"] - shift
    theirs["embeddings.position_embeddings"] = torch.cat([shift, state["pos_embed"]], 1)
    file = saved(theirs, tmp_path / "w.safetensors")
    found = load_encoder("mine", model=name, weights=file, device="cpu", arguments=SMALL).model.state_dict()
    for key in state:
        torch.testing.assert_close(found[key], state[key])


@pytest.mark.parametrize("lost", ["encoder.layer.0.attention.attention.key.weight", "embeddings.cls_token"])
def test_weights_of_transformers_that_lack_one_are_refused(lost: str, vit: State, tmp_path: Path) -> None:
    theirs = as_transformers(vit, _DINO)
    with pytest.raises(ArtifactError, match="does not fit the model"):
        load({key: value for key, value in theirs.items() if key != lost}, tmp_path)
