"""What is run: every seed, peers after their reference, each ablation once."""

from __future__ import annotations

from typing import Any

import pytest

from clpdd.benchmark.ablations import plan_ablations
from clpdd.benchmark.plan import marks_by_clock, marks_by_steps, plan
from clpdd.config.loading import parse_settings
from clpdd.errors import SettingsError


def test_the_plan_runs_what_optimises_with_every_seed_and_peers_after_their_reference() -> None:
    names = ["clp", "lgm", "random", "full"]
    jobs = plan(parse_settings({"seed": 3, "benchmark": {"methods": names, "images_per_class": [1, 5], "seeds": 2}}))
    made = [(job.name, job.settings.images_per_class, job.seed) for job in jobs]
    first = [("clp", 1, 3), ("lgm", 1, 3), ("random", 1, 3), ("full", 1, 3), ("clp", 1, 4), ("lgm", 1, 4)]
    assert made == [*first, ("clp", 5, 3), ("lgm", 5, 3), ("random", 5, 3), ("clp", 5, 4), ("lgm", 5, 4)]
    for job in jobs:
        if job.name == "lgm":
            assert job.reference in jobs
            assert job.reference is not None
            assert (job.reference.seed, job.reference.settings.images_per_class) == (
                job.seed,
                job.settings.images_per_class,
            )


@pytest.mark.parametrize(
    ("benchmark", "said"),
    [
        ({"methods": ["lgm"]}, "which methods does not list"),
        ({"methods": ["lgm", "clp"]}, "swap them"),
        ({"methods": ["clpp"]}, r"benchmark.methods: unknown method 'clpp'; did you mean clp\?"),
        ({"methods": ["centroid"], "peers": {}, "images_per_class": [1, 50]}, "raise kernels.nearest to at least 50"),
        ({"encoders": ["vit"]}, "benchmark.encoders names 'vit'"),
        ({"ablations": ["colour"]}, "ablations"),
    ],
)
def test_impossible_comparisons_are_refused(benchmark: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_settings({"benchmark": benchmark})


def test_a_peer_whose_schedule_hangs_on_its_steps_is_refused() -> None:
    own = {"variants": {"lgm": {"schedule": "cosine"}}, "benchmark": {"methods": ["clp", "lgm"]}}
    with pytest.raises(SettingsError, match="schedule constant"):
        plan(parse_settings(own))


def test_marks_halve_towards_the_start_and_double_towards_the_end() -> None:
    assert marks_by_steps(100, 3) == [0, 12, 25, 50, 100]
    assert marks_by_steps(1, 3) == [0, 1]
    assert marks_by_steps(100, None) == [100]
    assert marks_by_clock(8.0, 10, 2) == [2, 4, 8, 16, 32, 64, 80]
    assert marks_by_clock(8.0, 8, 0) == [8, 16, 32, 64]
    assert marks_by_clock(8.0, 1, 1) == [4, 8]


def test_each_choice_differs_from_the_base_in_what_it_says_and_the_same_is_made_once() -> None:
    chosen = parse_settings({"benchmark": {"seeds": 1, "temperatures": [0.05, 0.5], "ridges": [1.0, 3.0]}})
    jobs = plan_ablations(chosen)
    pairs = [pair for job in jobs for pair in job.choices]
    assert len(set(pairs)) == len(pairs)
    assert {group for group, _ in pairs} == set(chosen.benchmark.ablations)
    assert len({job.settings.model_dump_json() for job in jobs}) == len({job.item for job in jobs}) == len(jobs)
    base = next(job for job in jobs if ("objective", "cross-entropy") in job.choices)
    assert {("centring", "by the real mean"), ("temperature_ridge", "0.05 / 3"), ("views", "3 views a step")} <= {
        *base.choices
    }
    one = base.settings.model_dump()
    for job in jobs:
        changed = {key for key, value in job.settings.model_dump().items() if value != one[key]}
        assert len(changed) <= 2, job.choices  # two: temperature with ridge, squared error with the whole set
