"""Small pieces: ticks, durations, embedded pictures."""

from __future__ import annotations

import numpy as np
import pytest

from clpdd.report.figures import nice_ticks
from clpdd.report.page import duration
from clpdd.report.pictures import fit


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.0171), (52.1, 97.9), (-3, 12000), (5, 5)])
def test_ticks_are_round_and_span_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    steps = np.diff(ticks)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


def test_durations_read_as_people_say_them() -> None:
    said = [duration(s) for s in (None, 0.421, 9.96, 53.2, 59.99, 125, 3599.7, 3780)]
    assert said == ["–", "0.42 s", "10 s", "53 s", "60 s", "2 min 05 s", "1 h 00 min", "1 h 03 min"]


def test_small_images_are_kept_losslessly_and_large_ones_within_the_budget() -> None:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 256, (3, 48, 48), dtype=np.uint8) for _ in range(6)]
    assert all(picture.uri.startswith("data:image/png") and picture.crisp for picture in fit(noise, 100_000))
    assert sum(len(picture.uri) for picture in fit(noise, 12_000)) <= 12_000
    large = [np.tile(image, (1, 8, 8)) for image in noise]
    pictures = fit(large, 60_000)
    assert sum(len(picture.uri) for picture in pictures) <= 60_000
    assert not any(picture.crisp for picture in pictures)
