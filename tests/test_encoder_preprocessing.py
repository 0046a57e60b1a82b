"""Real images reach an encoder as timm's own transform brings them, byte for byte, for every configuration of timm."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision import transforms as tv

from clpdd.config.cache import CacheSettings
from clpdd.config.kernels import KernelSettings
from clpdd.config.loading import parse_settings
from clpdd.datasets.build import index_arrays
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import join_encoders, load_encoder
from clpdd.encoders.preprocessing import Preprocess
from clpdd.errors import DataError, SettingsError
from clpdd.functional.resample import resize
from clpdd.stages.index import run_index
from clpdd.stages.project import Project
from clpdd.stages.score import run_score
from clpdd.storage.layout import Layout
from clpdd.workspace import Workspace

from .versions import need_model, need_oblong_interpolation, need_oblong_positions

_KEYS = ("input_size", "crop_pct", "crop_mode", "interpolation")
_BORDERED = "deepseek_vit_412m"  # and its kin: the only ones of timm whose images get a border
_SIDES = [(64, 64), (37, 90), (90, 37), (200, 201), (1, 9), (640, 426), (31, 500)]  # height, width


class Flat(nn.Module):
    """A model of any input: the mean of each channel. It says its configuration as timm's models do."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pretrained_cfg = config

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@functools.cache
def configurations() -> dict[tuple[Any, ...], str]:
    """Every distinct configuration of timm's published weights, and one model that has it."""
    found: dict[tuple[Any, ...], str] = {}
    for name in timm.list_pretrained():
        config = timm.models.get_pretrained_cfg(name)
        assert config is not None
        mode = config.mean if config.crop_mode == "border" else None  # the colour of the border
        found.setdefault((*(getattr(config, key) for key in _KEYS), mode), name)
    return found


def encoder(name: str) -> Encoder:
    config = timm.models.get_pretrained_cfg(name)
    assert config is not None
    _, height, width = config.input_size
    return Encoder(name, Flat(config.to_dict()), (height, width))


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def timms(config: dict[str, Any]) -> tv.Compose:
    """timm's transform up to where it makes a tensor of the picture."""
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    made = create_transform(**{key: config[key] for key in keys}, is_training=False)
    tensor = next(i for i, step in enumerate(made.transforms) if "ToTensor" in type(step).__name__)
    return tv.Compose([*made.transforms[:tensor], tv.PILToTensor()])


def test_timm_has_configurations_of_every_kind() -> None:
    sizes, crops, modes, interpolations, _ = zip(*configurations(), strict=True)
    assert {"center", "squash"} <= set(modes)
    assert ("border" in modes) == timm.is_model(_BORDERED)
    assert any(size[1] != size[2] for size in sizes) == timm.is_model("vit_base_patch16_sapiens2")
    assert max(crops) > 1 > min(crops)
    assert {"bicubic", "bilinear"} <= set(interpolations)


@pytest.mark.parametrize("part", range(8))
def test_pixels_are_timms_for_all_its_configurations(part: int) -> None:
    for number, name in enumerate(list(configurations().values())[part::8]):
        made = encoder(name)
        config: Any = made.model.pretrained_cfg
        theirs = timms(config)
        for height, width in (_SIDES[(number + k) % len(_SIDES)] for k in range(2)):
            image = picture(height, width)
            expected = theirs(image)
            assert torch.equal(made.transform(image), expected), (name, height, width)
            assert np.array_equal(made.preprocess(image), expected.numpy()), (name, height, width)


@pytest.mark.parametrize("shape", _SIDES)
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 1.15])
@pytest.mark.parametrize("size", [(48, 48), (48, 36), (33, 64)])
def test_pixels_are_timms_for_every_mode_crop_and_shape(
    shape: tuple[int, int], mode: str, crop_pct: float, size: tuple[int, int]
) -> None:
    config = {
        "input_size": (3, *size),
        "interpolation": "bicubic",
        "mean": (0.1, 0.5, 0.9),
        "std": (1.0, 1.0, 1.0),
        "crop_pct": crop_pct,
        "crop_mode": mode,
    }
    if mode == "center":
        need_oblong_interpolation(size)
    made = Encoder("any", Flat(config), size)
    image = picture(*shape)
    try:
        expected = timms(config)(image)
    except ValueError:  # timm cannot resize to a height of no pixel
        with pytest.raises(DataError, match="too elongated"):
            made.preprocess(image)
        return
    assert torch.equal(made.transform(image), expected)


def test_a_border_has_the_colour_of_the_models_mean() -> None:
    need_model(_BORDERED)
    name = next(name for key, name in configurations().items() if key[2] == "border")
    made = encoder(name)
    assert made.describe()["border"] == [round(255 * value) for value in made.mean.flatten().tolist()]
    pixels = made.preprocess(Image.new("RGB", (200, 100), (255, 0, 0)))
    assert pixels[:, 0, 0].tolist() == made.describe()["border"]
    assert pixels[:, made.size // 2, made.size // 2].tolist() == [255, 0, 0]


def test_what_a_record_says_of_usual_encoders_is_what_it_said_before() -> None:
    made = encoder("resnet18.a1_in1k")
    keys = ["name", "digest", "dim", "size", "crop_fraction", "squash", "interpolation", "mean", "std"]
    assert list(made.describe()) == keys


def test_an_oblong_input_is_encoded_as_such_and_never_squared() -> None:
    need_model("vit_base_patch16_sapiens2")
    made = encoder("vit_base_patch16_sapiens2.fb")
    assert (made.shape, made.size, made.square) == ((1024, 768), 1024, False)
    assert made.describe()["shape"] == [1024, 768]
    assert made.preprocess(picture(90, 37)).shape == (3, 1024, 768)
    images = torch.rand(1, 3, 50, 70)
    expected = Flat({})((resize(images, (1024, 768)) - made.mean) / made.std)
    torch.testing.assert_close(made(images), expected)
    with pytest.raises(SettingsError, match=r"1024 x 768 .* synthetic images are square.*image_size: 768"):
        made.require_square("anything")
    with pytest.raises(SettingsError, match="joining it with others"):
        join_encoders({made: 1.0, encoder("resnet18.a1_in1k"): 1.0})


def test_a_joint_encoder_prepares_images_as_its_largest_member_borders_and_all() -> None:
    need_model(_BORDERED)
    name = next(name for key, name in configurations().items() if key[2] == "border")
    bordered, other = encoder(name), encoder("resnet18.a1_in1k")
    assert bordered.size > other.size
    joint = join_encoders({other: 1.0, bordered: 1.0})
    image = picture(90, 37)
    assert np.array_equal(joint.preprocess(image), bordered.preprocess(image))


def test_a_picture_too_elongated_for_a_mode_is_refused_before_it_fills_the_memory() -> None:
    hair = Image.new("RGB", (1, 1_000_000))
    ways = Preprocess(224, 224, "bicubic"), Preprocess((224, 160), (224, 160), "bicubic")
    for way in (*ways, replace(ways[0], border=(0, 0, 0))):
        with pytest.raises(DataError, match="too elongated"):
            way(hair)
    assert replace(ways[0], squash=True)(hair).shape == (3, 224, 224)


# -- inputs that are not square ----------------------------------------------------------------------------------------


@register_model
def clpdd_oblong_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT of 32 x 24 pixels for these tests."""
    kept = {key: value for key, value in kwargs.items() if key in ("num_classes", "img_size")}
    shape: dict[str, Any] = {"img_size": (32, 24), "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model: Any = VisionTransformer(**(shape | kept))
    model.default_cfg = model.pretrained_cfg = {
        "input_size": (3, 32, 24),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "crop_pct": 1.0,
    }
    assert isinstance(model, VisionTransformer)
    return model


@pytest.fixture
def oblong(tmp_path: Path) -> Encoder:
    return load_encoder("oblong", model="clpdd_oblong_vit", untrained=0, device="cpu")


def indexed(root: Path) -> None:
    pixels = torch.randint(
        0, 256, (24, 40, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    labels = torch.arange(24).numpy() % 2
    cuts = {"train": slice(0, 12), "validation": slice(12, 18), "test": slice(18, 24)}
    index_arrays({name: (pixels[cut], labels[cut]) for name, cut in cuts.items()}, ["a", "b"], root / "index")


def test_real_images_of_an_oblong_encoder_are_cached_and_probed(oblong: Encoder, tmp_path: Path) -> None:
    indexed(tmp_path)
    work = Workspace(tmp_path, oblong, cache=CacheSettings(batch_size=5), kernels=KernelSettings(nearest=2))
    assert oblong.shape == (32, 24)
    assert work.kernels().counts.tolist() == [6, 6]
    assert len(work.distill("full")) == 0
    assert min(score for scores in work.evaluate("full").values() for score in scores.values()) >= 0


def test_synthetic_images_of_an_oblong_encoder_are_refused_by_name_and_the_remedy_works(
    oblong: Encoder, tmp_path: Path
) -> None:
    indexed(tmp_path)
    work = Workspace(tmp_path, oblong, kernels=KernelSettings(nearest=2))
    for method in ("clp", "centroid", "random"):
        with pytest.raises(
            SettingsError, match=rf"'oblong' takes images of 32 x 24 .* the method {method} is not poss"
        ):
            work.distill(method)
    with pytest.raises(SettingsError, match=r"encoder_options: \{oblong: \{image_size: 24\}\}"):
        oblong.require_square("anything")
    need_oblong_positions(32, 24, 8)
    square = load_encoder("oblong", model="clpdd_oblong_vit", untrained=0, image_size=24, device="cpu")
    assert square.shape == (24, 24)
    indexed(tmp_path / "square")
    other = Workspace(tmp_path / "square", square, kernels=KernelSettings(nearest=2))
    assert other.distill("centroid").draws[0].images.shape == (2, 3, 24, 24)


def test_images_are_not_judged_with_an_oblong_encoder(
    oblong: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed(tmp_path)
    work = Workspace(tmp_path, oblong, cache=CacheSettings(batch_size=5), kernels=KernelSettings(nearest=2))
    work.kernels()
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "set" / name / "0.png")
    monkeypatch.setattr(Project, "encoder", lambda self, name: oblong)
    project = Project(parse_settings({"evaluate": {"protocols": ["closed_form"], "views": 1}}), Layout(tmp_path))
    with pytest.raises(SettingsError, match=r"'oblong' takes images of 32 x 24 .* judging images is not possible"):
        run_score(project, tmp_path / "set", ["oblong"])


def test_an_oblong_encoder_is_refused_at_the_first_stage_where_methods_make_images(tmp_path: Path) -> None:
    need_model("vit_base_patch16_sapiens2")
    settings = {"encoders": ["vit_base_patch16_sapiens2"], "methods": ["clp", "full"]}
    with pytest.raises(SettingsError, match=r"takes images of 1024 x 768 pixels .*the method clp is not possible"):
        run_index(Project(parse_settings(settings), Layout(tmp_path)))
    run_index(Project(parse_settings(settings | {"methods": ["full"]}), Layout(tmp_path)))
    options = {"encoder_options": {"vit_base_patch16_sapiens2": {"image_size": 768}}}
    run_index(Project(parse_settings(settings | options), Layout(tmp_path)))
