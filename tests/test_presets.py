"""Every preset: sound settings, an index of a true layout, one step with its own architecture on random weights."""

from __future__ import annotations

import logging
import os
import re
import shutil
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
from torchvision import transforms as tv

from clpdd.catalogue.datasets import entry
from clpdd.catalogue.encoders import KNOWN_ENCODERS
from clpdd.catalogue.passes import COUNTED
from clpdd.cli import dry_run as dry_run_module
from clpdd.cli.cost import encoder_pass, estimate
from clpdd.cli.counting import count_pass
from clpdd.cli.dry_run import dry_run
from clpdd.cli.main import main
from clpdd.cli.presets import apply_preset, preset, preset_names
from clpdd.config.editing import edited
from clpdd.config.loading import load_settings, parse_settings
from clpdd.config.settings import Settings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.errors import SettingsError
from tests.photos import draw_photos

from .trees import TREES, table
from .versions import counts_attention, need_model

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "clpdd" / "presets"
DATASETS = sorted(path.stem for path in (FOLDER / "datasets").glob("*.yaml"))
ENCODERS = sorted(path.stem for path in (FOLDER / "encoders").glob("*.yaml"))


def keys(values: Any, prefix: str = "") -> set[str]:
    if not isinstance(values, dict) or prefix == "encoder_options":
        return {prefix}
    return {key for name, inner in values.items() for key in keys(inner, f"{prefix}.{name}" if prefix else name)}


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_the_papers_presets_are_there() -> None:
    names = preset_names(FOLDER)
    papers = ("clip", "dinov2", "eva02", "mocov3", "dinov3", "siglip2", "mae")
    wanted = {f"{d}-{e}" for d in ("imagenet1k", "imagenet100", "waterbirds", "spawrious") for e in papers}
    assert wanted | {"cifar10-resnet14", "tiny-imagenet-100-resnet14", "digits-resnet14"} <= set(names)


def test_halves_of_a_kind_set_the_same_keys_so_that_none_leaves_anything_behind() -> None:
    for kind in ("datasets", "encoders"):
        sets = {p.name: keys(yaml.safe_load(p.read_text())) for p in (FOLDER / kind).glob("*.yaml")}
        assert len({frozenset(found) for found in sets.values()}) == 1, kind


@pytest.mark.parametrize("name", ["imagenet1k-dinov2", "spawrious-eva02", "tiny-imagenet-100-mocov3"])
def test_a_preset_is_written_whole_and_the_default_one_brings_the_shipped_settings_back(
    params: Path, name: str
) -> None:
    before = params.read_text()
    settings = apply_preset(name, params, FOLDER)
    assert settings == load_settings(params)
    assert settings.encoders == [name.rpartition("-")[2]]
    assert settings.dataset.name == preset(name, FOLDER)["dataset"]["name"]
    comments = [line.partition("# ")[2] for line in before.splitlines()]
    assert [line.partition("# ")[2] for line in params.read_text().splitlines()] == comments
    assert apply_preset("digits-resnet14", params, FOLDER) == load_settings(ROOT / "params.yaml")


def test_settings_a_preset_does_not_name_stay_as_they_are(params: Path) -> None:
    params.write_text("distill:\n  steps: 7  # few\nmethods:\n  - clp  # mine\n")
    settings = apply_preset("waterbirds-clip", params, FOLDER, root="~/birds")
    assert (settings.distill.steps, settings.methods, settings.dataset.root) == (7, ["clp"], "~/birds")
    assert "# few" in params.read_text()
    assert "# mine" in params.read_text()


def test_unknown_presets_and_unsound_files_are_refused_and_nothing_is_written(params: Path) -> None:
    before = params.read_text()
    with pytest.raises(SettingsError, match="no preset 'imagenet1k-dino'"):
        apply_preset("imagenet1k-dino", params, FOLDER)
    with pytest.raises(SettingsError, match="holds no presets"):
        preset_names(params.parent)
    assert params.read_text() == before
    params.write_text("distill: {stepz: 1}\n")
    with pytest.raises(SettingsError, match="did you mean steps"):
        apply_preset("digits-clip", params, FOLDER)
    assert params.read_text() == "distill: {stepz: 1}\n"


def test_editing_replaces_values_and_keeps_the_rest() -> None:
    text = "a: 1  # one\nb:\n  c: [1, 2]  # two\n  d: 3\n"
    out = edited(text, {"b": {"c": [5], "e": None}, "f": {"g": {"h": 1}}})
    assert yaml.safe_load(out) == {"a": 1, "b": {"c": [5], "d": 3, "e": None}, "f": {"g": {"h": 1}}}
    assert "# one" in out
    assert "# two" in out


BLOCKS = """\
encoders:      # which
- one          # the first
- two

# what is cached
cache:
  dtype: float16
variants:
  hot:
    x: [1]     # deep

# what is distilled
distill:
  crop_area:
  - 0.5
  - 1.0
  steps: 3
"""


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"encoders": ["three"]}, "encoders: [three] # which\n\n# what is cached\ncache:\n  dtype"),
        ({"variants": {}}, "variants: {}\n\n# what is distilled\ndistill:\n"),
        ({"variants": {"cold": {"x": 2}}}, "variants: {cold: {x: 2}}\n\n# what is distilled\ndistill:\n"),
        ({"distill": {"crop_area": [0.1, 0.2]}}, "distill:\n  crop_area: [0.1, 0.2]\n  steps: 3\n"),
        ({"encoders": None}, "encoders: null # which\n\n# what is cached\n"),
    ],
)
def test_lists_and_sections_on_lines_of_their_own_are_replaced_and_what_follows_stays(
    changes: dict[str, Any], changed: str
) -> None:
    """That is how ``dvc exp run -S`` leaves the file."""
    out = edited(BLOCKS, changes, ("variants",))
    expected = yaml.safe_load(BLOCKS)
    for key, value in changes.items():
        expected[key] = expected[key] | value if key == "distill" else value
    assert yaml.safe_load(out) == expected
    assert changed in out


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_dataset_half_indexes_a_tree_in_its_true_layout(tmp_path: Path, dataset: str) -> None:
    changes = preset(f"{dataset}-resnet14", FOLDER)
    settings = parse_settings(changes).dataset
    layout, root = entry(settings.name).layout, tmp_path / (settings.root or "")
    if layout == "parquet":
        for split, count in (("train", 6), ("test", 2)):
            names = [f"class {k}" for k in range(3)]
            path = tmp_path / f"images/tiny-imagenet-100-{split}.parquet"
            table(path, [k % 3 for k in range(3 * count)], ("image", "label"), names)
    elif layout != "digits":
        TREES[settings.name](root, settings.name, 2)
    paths = build_index(settings, 0, tmp_path / "index", base=tmp_path)
    found = {split: Index.open(path) for split, path in paths.items()}
    assert all(index.dataset == (settings.title or settings.name) for index in found.values())
    if classes := entry(settings.name).classes:
        assert len(found["train"].class_names) == classes
        assert set(found["train"].labels) == set(range(classes))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_half_walks_one_step_on_random_weights(
    tmp_path: Path, encoder: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clpdd")
    settings = parse_settings(preset(f"imagenet100-{encoder}", FOLDER))
    known = KNOWN_ENCODERS.get(encoder)
    if known is not None:
        need_model(known.model)
    # one block of each transformer: its input size, embeddings, pooling and normalisation are the true ones
    arguments = None if encoder == "resnet14" else {"depth": 1}
    ((walk,), cost) = dry_run(settings, tmp_path, arguments=arguments, tell=lambda _: None)
    assert (walk.size, walk.dim) == ((64, 768) if encoder == "resnet14" else (224, 768))
    assert walk.made == {"clp": (2, 3, walk.size, walk.size)}
    assert cost is not None
    assert cost.images == 126_689 + 5_000
    assert "top-1" not in caplog.text  # which is chance, on random weights and images


@pytest.mark.slow
@pytest.mark.skipif("CLPDD_WHOLE_ENCODERS" not in os.environ, reason="takes minutes: set CLPDD_WHOLE_ENCODERS")
@pytest.mark.parametrize("encoder", ENCODERS)
def test_whole_encoders_walk_too(tmp_path: Path, encoder: str) -> None:
    ((walk,), _) = dry_run(parse_settings(preset(f"imagenet1k-{encoder}", FOLDER)), tmp_path)
    assert walk.made


# -- as published ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dim"), [("clip", 512), ("dinov2", 768), ("dinov3", 768), ("eva02", 768), ("mocov3", 768)]
)
def test_published_encoders_see_what_lgms_code_shows_them(name: str, dim: int) -> None:
    values = preset(f"imagenet100-{name}", FOLDER, published=True)
    assert keys(values) == keys(preset(f"imagenet100-{name}", FOLDER))
    arguments = parse_settings(values).encoder_arguments(name)
    need_model(arguments["model"])
    encoder = load_encoder(**arguments, untrained=0, arguments={"depth": 1}, device="cpu")
    assert (encoder.dim, encoder.size) == (dim, 224)
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    theirs = tv.CenterCrop(224)(tv.Resize(256)(picture))
    np.testing.assert_array_equal(encoder.preprocess(picture), np.asarray(theirs).transpose(2, 0, 1))


def test_synthetic_images_are_as_large_as_in_published_code_until_a_plain_preset_is_taken(params: Path) -> None:
    for name in (path.stem for path in (FOLDER / "published").glob("*.yaml")):
        assert apply_preset(f"imagenet100-{name}", params, FOLDER, published=True).distill.image_size == 256
        assert apply_preset(f"imagenet100-{name}", params, FOLDER).distill.image_size is None


def test_an_encoder_that_nobody_published_so_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"has no siglip2, .* take one of clip, dinov2, dinov3, eva02, mocov3, or"):
        preset("imagenet100-siglip2", FOLDER, published=True)


# -- cost --------------------------------------------------------------------------------------------------------------


def test_passes_are_counted_on_the_architecture() -> None:
    known = encoder_pass("vit_base_patch16_clip_224.openai")
    tokens, width, blocks = 14 * 14 + 1, 768, 12
    dense = tokens * blocks * 12 * width**2 + (tokens - 1) * width * 3 * 16**2
    attention = blocks * 2 * tokens**2 * width
    assert known.macs == pytest.approx(dense + attention, rel=0.01)
    assert (known.dim, known.size) == (width, 224)
    assert (
        encoder_pass("vit_base_patch14_dinov2.lvd142m", 224).macs
        < encoder_pass("vit_base_patch14_dinov2.lvd142m").macs / 5
    )


def test_the_encoders_of_the_presets_cost_what_is_listed() -> None:
    """Their passes are listed, so that ``clpdd preset`` builds no model; a new preset's encoder belongs there too."""
    known = [parse_settings(preset(f"digits-{encoder}", FOLDER)) for encoder in ENCODERS]
    asked = {
        (own.model or name, own.image_size) for s in known for e in s.encoders for name, own in s.members(e).items()
    }
    assert asked == {*COUNTED}
    there = {key: listed for key, listed in COUNTED.items() if timm.is_model(key[0].partition(".")[0])}
    assert len(there) >= len(COUNTED) - 1  # an old timm lacks DINO-v3
    for key, listed in there.items():
        found = count_pass(*key)
        assert (found.dim, found.size, found.weights) == (listed.dim, listed.size, listed.weights)
        assert found.macs == pytest.approx(listed.macs, rel=1e-3 if counts_attention() else 0.1)
        kept = 0.1 if counts_attention() else 0.5  # what kernels keep: torch's affair
        assert found.activations == pytest.approx(listed.activations, rel=kept)


def test_costs_follow_the_settings() -> None:
    def cost(**distill: Any) -> Any:
        return estimate(parse_settings({"dataset": {"name": "imagenet-1k", "root": "x"}, "distill": distill}), 1e12)

    base = cost(steps=100, augmentations=2)
    assert base.passes["distill"] == 2 * 1000 * 2 * 100  # there and back, classes, views, steps
    assert base.images == 1_331_167
    assert cost(steps=300, augmentations=2).seconds["distill"] == pytest.approx(3 * base.seconds["distill"])
    assert cost(steps=100, augmentations=2, encoder_batch=64).memory < base.memory
    assert estimate(Settings.model_validate({"dataset": {"name": "folder", "train": "x"}})) is None


def test_a_dry_run_counts_a_folder_and_says_where_it_cannot(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", 12, ("a", "b", "c"))
    dataset = {"name": "folder", "train": str(photos), "max_per_class": {"test": 1}}
    quick = {"dataset": dataset, "distill": {"images_per_class": 2}, "methods": ["clp"]}
    told: list[str] = []
    _, cost = dry_run(parse_settings(quick), tmp_path / "run", tell=told.append)
    assert told[-1] == "3 classes, 33 images: 27 train, 3 validation, 3 test"
    assert cost is not None
    assert cost.images == 33
    assert cost.passes["cache"] == 33
    missing = quick | {"dataset": dataset | {"train": str(tmp_path / "none")}}
    _, cost = dry_run(parse_settings(missing), tmp_path / "other", tell=told.append)
    assert cost is None
    assert "images are not counted: " in told[-1]


@pytest.mark.parametrize(
    ("gain", "precision", "offered"), [(1.5, "auto", True), (1.1, "auto", False), (1.5, "float32", False)]
)
def test_a_dry_run_offers_bfloat16_where_it_was_measured_to_pay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, precision: str, offered: bool
) -> None:
    taken = []

    def gained(encoder: Encoder, batch: int) -> float:
        taken.append(measured(encoder, 2))
        return gain

    measured = dry_run_module._bfloat16_gain
    monkeypatch.setattr(dry_run_module, "_bfloat16_gain", gained)
    told: list[str] = []
    dry_run(parse_settings({"methods": ["clp"], "precision": precision}), tmp_path, tell=told.append)
    assert any(line.endswith("precision: bfloat16 has all stages compute so") for line in told) == offered
    assert all(0 < ratio < float("inf") for ratio in taken)
    assert bool(taken) == (precision == "auto")


# -- commands ----------------------------------------------------------------------------------------------------------


def test_the_command_lists_and_writes_presets(
    params: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--params", str(params), "preset", "--presets", str(FOLDER)]
    assert main(options) == 0
    listed = capsys.readouterr().out
    table = [re.split(r" {2,}", line.strip()) for line in listed.splitlines() if "  " in line]
    encoders, rows = table[0][3:], {row[0]: row[1:] for row in table[1:]}
    assert table[0][:3] == ["classes", "images", "images per class"]
    assert {f"{dataset}-{encoder}" for dataset in rows for encoder in encoders} == {*preset_names(FOLDER)}
    assert all(len(row) == 3 + len(encoders) for row in rows.values())
    assert rows["imagenet1k"][:3] == ["1,000", "1,331,167", "1"]
    wanted = sum(estimate(parse_settings(preset("imagenet1k-dinov2", FOLDER))).seconds.values())  # type: ignore[union-attr]
    assert rows["imagenet1k"][3 + encoders.index("dinov2")] == f"{wanted / 3600:.1f} h"
    assert "Assumed: 20 T multiply-accumulates a second" in listed
    assert main([*options, "waterbirds-clip", "--root", "/birds"]) == 0
    assert load_settings(params).dataset.root == "/birds"
    assert main([*options, "waterbirds-clip", "--published"]) == 0
    assert load_settings(params).options("clip").crop_pct == 0.875
    assert main([*options, "waterbirds-klip"]) == 2


def test_dvc_reads_the_matrix_from_what_a_preset_wrote(params: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", params.parent / "dvc.yaml")
    apply_preset("cifar10-siglip2", params, FOLDER)

    def dvc(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *command], cwd=params.parent, capture_output=True, text=True, check=True
        )
        return done.stdout

    dvc("init", "-q", "--no-scm")
    stages = dvc("stage", "list", "--name-only").split()
    assert {"cache@siglip2", "kernels@siglip2", "distill@siglip2-clp"} <= set(stages)
    assert not [stage for stage in stages if "clpdd_resnet14" in stage]
