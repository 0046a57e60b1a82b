"""Temperature and ridge that are ``auto``: what is tried, what is chosen, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clpdd.config.distill import TRIED, DistillSettings
from clpdd.errors import Preempted, SettingsError
from clpdd.methods import search
from clpdd.methods.clp import ClosedFormProbe
from clpdd.methods.loading import load_method
from clpdd.methods.search import settled
from clpdd.optimise.context import Context

from .conftest import World
from .contexts import context

FEW: dict[str, Any] = {"steps": 2, "augmentations": 1, "outer_batch": 32, "images_per_class": 1}


def told(made: Context, monkeypatch: pytest.MonkeyPatch, scores: dict[tuple[float, float], float]) -> DistillSettings:
    """The settings chosen where a short distillation with (temperature, ridge) gives these scores, else 50 %."""

    def score(_: object, settings: DistillSettings, name: str) -> dict[str, float]:
        found = scores.get((settings.number("temperature"), settings.number("ridge")), 50.0)
        return {"validation_top1": found, "seconds": 2.0, "forward": 3, "backward": 1}

    monkeypatch.setattr(search._Trials, "_made", score)
    return settled(made, ClosedFormProbe).settings


def test_numbers_stay_as_they_are_and_nothing_is_tried(world: World, tmp_path: Path) -> None:
    made = context(world, tmp_path, temperature=0.07, ridge=2.0, **FEW)
    assert settled(made, ClosedFormProbe).settings == made.settings
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({}, (0.05, 3.0)),
        ({(0.02, 3.0): 50.5, (0.05, 10.0): 51.0}, (0.05, 3.0)),  # by less than the standard error of sixty images: 6.5
        ({(0.02, 3.0): 60.0, (0.2, 3.0): 59.0}, (0.02, 3.0)),
        ({(0.1, 3.0): 60.0, (0.1, 10.0): 70.0, (0.05, 1.0): 90.0}, (0.1, 10.0)),  # one after the other
    ],
)
def test_another_value_is_taken_where_it_is_clearly_better(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: dict[tuple[float, float], float],
    chosen: tuple[float, float],
) -> None:
    both = context(world, tmp_path, temperature="auto", ridge="auto", **FEW)
    assert len(both.validation) == 60
    settings = told(both, monkeypatch, scores)
    assert (settings.temperature, settings.ridge) == chosen


def test_one_alone_is_searched_beside_the_others_number(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = told(context(world, tmp_path, temperature=0.3, ridge="auto", **FEW), monkeypatch, {(0.3, 1.0): 99.0})
    assert (settings.temperature, settings.ridge) == (0.3, 1.0)


def test_the_mean_squared_error_has_no_temperature_to_search(world: World, tmp_path: Path) -> None:
    made = context(world, tmp_path, objective="mse", temperature="auto", **FEW)
    assert made.settings.trial_steps == 0
    assert settled(made, ClosedFormProbe).settings.temperature == 0.05


def test_the_set_is_that_of_the_numbers_chosen_and_says_what_was_tried(world: World, tmp_path: Path) -> None:
    searched = load_method("clp")(context(world, tmp_path / "auto", temperature="auto", ridge="auto", **FEW))
    found = searched.info["search"]
    plain = load_method("clp")(context(world, tmp_path / "plain", **found["chosen"], **FEW))
    assert torch.equal(searched.images, plain.images)
    assert found["tried"][0] | {"validation_top1": 0} == {"temperature": 0.05, "ridge": 3.0, "validation_top1": 0}
    assert len(found["tried"]) == 1 + len(TRIED["temperature"]) + len(TRIED["ridge"])
    passes, own = searched.info["encoder_images"], plain.info["encoder_images"]
    assert passes["backward"] == own["backward"] * 7  # six trials of as many steps
    assert not list((tmp_path / "auto" / "search").iterdir())


def test_a_killed_search_goes_on_where_it_was(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    untouched = load_method("clp")(context(world, tmp_path / "untouched", temperature="auto", **FEW))
    optimise, calls = search.optimise, list[str]()

    def watched(short: Context, problem: Any) -> Any:
        calls.append(short.work.name)
        if len(calls) == 3:
            raise Preempted("stopped")
        return optimise(short, problem)

    monkeypatch.setattr(search, "optimise", watched)
    with pytest.raises(Preempted):
        load_method("clp")(context(world, tmp_path / "killed", temperature="auto", **FEW))
    resumed = load_method("clp")(context(world, tmp_path / "killed", temperature="auto", **FEW))
    assert len(calls) == 5  # the third again, and the fourth: the first two are known
    assert torch.equal(resumed.images, untouched.images)
    assert resumed.info["search"] == untouched.info["search"]


def test_a_method_that_searches_nothing_takes_the_default(world: World, tmp_path: Path) -> None:
    auto = load_method("sfm")(context(world, tmp_path / "auto", ridge="auto", **FEW))
    plain = load_method("sfm")(context(world, tmp_path / "plain", **FEW))
    assert torch.equal(auto.images, plain.images)
    assert auto.info["validation_top1"] == plain.info["validation_top1"]


def test_another_word_than_auto_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(SettingsError, match=r"temperature.*auto"):
        DistillSettings(temperature="best")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="temperature"):
        DistillSettings(temperature=0.0)
