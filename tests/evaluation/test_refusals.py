"""Sets, stores and kernels that do not belong together are refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.encoder import first_difference
from clpdd.errors import ArtifactError, SettingsError

from .conftest import SPLITS, World


def altered(world: World, tmp_path: Path, **changes: Any) -> dict[tuple[str, str], Path]:
    data = DistilledSet.load(world.distilled["one", "clp"])
    replace(data, **changes).save(tmp_path / "altered")
    return {("one", "clp"): tmp_path / "altered"}


def test_an_empty_set_is_refused(world: World, tmp_path: Path) -> None:
    data = DistilledSet.load(world.distilled["one", "clp"])
    distilled = altered(world, tmp_path, images=data.images[:0], labels=data.labels[:0], draw=None)
    with pytest.raises(ArtifactError, match="altered holds no images"):
        world.evaluate(tmp_path, distilled=distilled)


def test_other_classes_are_refused(world: World, tmp_path: Path) -> None:
    names = [*DistilledSet.load(world.distilled["one", "clp"]).class_names, "ten"]
    with pytest.raises(ArtifactError, match=r"11 classes .* the test features have 10"):
        world.evaluate(tmp_path, distilled=altered(world, tmp_path, class_names=names))


def test_a_set_of_another_method_is_refused(world: World, tmp_path: Path) -> None:
    distilled = {("one", "centroid"): world.distilled["one", "clp"]}
    with pytest.raises(ArtifactError, match="made by the method clp, not centroid"):
        world.evaluate(tmp_path, distilled=distilled)


def test_stores_kernels_and_sets_of_another_encoder_are_refused(world: World, tmp_path: Path) -> None:
    swapped = {"one": world.encoders["two"], "two": world.encoders["one"]}
    with pytest.raises(ArtifactError, match=r"train\.zarr was made with another encoder than one: digest"):
        world.evaluate(tmp_path, encoders=swapped)
    with pytest.raises(ArtifactError, match=r"kernels was made with another encoder than one"):
        world.evaluate(tmp_path, kernels=dict.fromkeys(world.encoders, world.root / "two" / "kernels"))
    with pytest.raises(ArtifactError, match="was distilled with another encoder than two"):
        world.evaluate(tmp_path, distilled={("two", "clp"): world.distilled["one", "clp"]})


@pytest.mark.parametrize(
    ("prepared", "field"),
    [({"crop_pct": 0.5}, "crop_fraction"), ({"interpolation": "bilinear"}, "interpolation")],
)
def test_features_of_images_that_were_cropped_or_resized_otherwise_are_refused(
    world: World, tmp_path: Path, prepared: dict[str, Any], field: str
) -> None:
    other = copy.deepcopy(world.encoders["one"])
    other.prepare(**prepared)
    with pytest.raises(ArtifactError, match=f"was made with another encoder than one: {field}"):
        world.evaluate(tmp_path, encoders={**world.encoders, "one": other})


@pytest.mark.parametrize(("method", "refused"), [("random", True), ("clp", False)])
def test_a_set_of_real_images_that_were_cropped_otherwise_is_refused(
    world: World, tmp_path: Path, method: str, refused: bool
) -> None:
    data = DistilledSet.load(world.distilled["one", method])
    told = data.info | {"encoder": data.info["encoder"] | {"crop_fraction": 0.5}}
    replace(data, info=told).save(tmp_path / "altered")
    distilled = {("one", method): tmp_path / "altered"}
    if refused:
        with pytest.raises(ArtifactError, match="was distilled with another encoder than one: crop_fraction"):
            world.evaluate(tmp_path, distilled=distilled)
    else:
        world.evaluate(tmp_path, distilled=distilled)


def test_real_images_that_are_cropped_otherwise_make_no_other_encoder_of_a_set(world: World) -> None:
    told = DistilledSet.load(world.distilled["one", "clp"]).info["encoder"]
    other = copy.deepcopy(world.encoders["one"])
    other.prepare(crop_pct=0.5)
    assert first_difference(told, other) == "crop_fraction"
    assert first_difference(told, other, images=False) is None
    other.mean += 0.1
    assert first_difference(told, other, images=False) == "mean"


def test_splits_that_are_mixed_up_are_refused(world: World, tmp_path: Path) -> None:
    wrong = {e: dict.fromkeys(SPLITS, world.root / e / "train.zarr") for e in world.encoders}
    with pytest.raises(ArtifactError, match="holds the split train, not validation"):
        world.evaluate(tmp_path, stores=wrong)


def test_nothing_to_evaluate_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least one method"):
        world.evaluate(tmp_path, distilled={})
