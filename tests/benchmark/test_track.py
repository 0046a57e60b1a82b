"""The points of a distillation that are kept for judging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clpdd.benchmark.track import BudgetSpent, Track, read_track
from clpdd.errors import ArtifactError
from clpdd.optimise.context import Snapshot


def snapshot(step: int, seconds: float) -> Snapshot:
    return Snapshot(step, seconds, torch.full((2, 3, 4, 4), step, dtype=torch.uint8), 10 * step, step)


def test_points_by_the_clock_are_the_first_at_or_after_each_mark(tmp_path: Path) -> None:
    track = Track(tmp_path, [1.0, 2.0, 4.0])
    for step in range(9):
        track(snapshot(step, 0.45 * step))
    with pytest.raises(BudgetSpent):
        track(snapshot(9, 4.05))
    found = read_track(tmp_path)
    assert [(p.step, p.forward) for p in found] == [(0, 0), (3, 30), (5, 50), (9, 90)]
    assert torch.equal(found[1].images, snapshot(3, 0).images)


def test_a_killed_attempts_points_stay_up_to_where_it_is_continued(tmp_path: Path) -> None:
    first = Track(tmp_path, [1.0, 2.0, 4.0])
    for step in (0, 1, 2):
        first(snapshot(step, float(step)))
    again = Track(tmp_path, [1.0, 2.0, 4.0])  # from a checkpoint at step 1, on a slower clock
    again(snapshot(2, 2.5))
    again(snapshot(3, 3.5))
    assert [(p.step, p.seconds) for p in read_track(tmp_path)] == [(0, 0.0), (1, 1.0), (2, 2.5)]


def test_a_damaged_point_is_told(tmp_path: Path) -> None:
    Track(tmp_path)(snapshot(1, 1.0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_track(tmp_path)
