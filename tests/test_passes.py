"""How many views a pass has and whose graphs are kept: by the memory there is, and the same for a resumed run."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clpdd.distributed.group import ALONE
from clpdd.encoders.encoder import Encoder
from clpdd.errors import ResourceError
from clpdd.optimise import passes
from clpdd.optimise.passes import Need, Plan, agreed, divided, measured, repays, starts_slowly
from clpdd.storage.files import read_json

CPU = torch.device("cpu")
MB = 2**20
NEED = Need(37 * MB, 8 * MB)  # about a view of 224 pixels through a ViT-B/16 in bfloat16


@given(st.integers(1, 400), st.integers(1, 12), st.integers(46, 100_000))
def test_what_is_planned_fits_and_is_made_of_whole_passes(images: int, count: int, room: int) -> None:
    batch, kept = divided(images, count, NEED, room * MB)
    total = images * count
    assert 1 <= batch <= 512
    assert batch * (NEED.graph + NEED.work) <= room * MB
    assert 0 <= kept <= total
    assert kept * NEED.graph + min(batch, total) * NEED.work <= room * MB
    assert kept in (0, total) or kept % batch == 0
    assert batch % count == 0 or batch < count


def test_with_room_for_everything_everything_is_kept() -> None:
    assert divided(1000, 3, NEED, 130 * 1024 * MB) == (501, 3000)


def test_less_memory_keeps_less_and_then_shortens_the_passes() -> None:
    plans = [divided(1000, 3, NEED, gib * 1024 * MB) for gib in (120, 70, 30, 8, 3)]
    kept = [kept for _, kept in plans]
    assert kept == sorted(kept, reverse=True)
    assert plans[-1][0] < 100 < plans[0][0]
    assert kept[1] > 1500


def test_a_given_number_of_views_stands_and_what_is_kept_follows() -> None:
    assert divided(1000, 3, NEED, 40 * 1024 * MB, batch=96) == (96, 1056)


def test_no_room_for_one_view_is_refused_with_what_to_raise() -> None:
    with pytest.raises(ResourceError, match=r"one view takes 0\.04 GiB: raise runtime\.memory"):
        divided(10, 2, NEED, 44 * MB)


def test_what_a_view_takes_is_measured(encoder: Encoder) -> None:
    need = measured(encoder, "float32")
    pixels = 3 * encoder.size**2 * 4
    assert need.graph > 5 * pixels
    assert need.work > 6 * pixels


def test_a_cpu_is_never_compiled_for_unasked() -> None:
    assert not repays(10**9, 10**6, NEED, CPU, torch.bfloat16)


def test_short_passes_that_keep_nothing_are_replayed() -> None:
    assert starts_slowly(Plan(96), 3000)
    assert not starts_slowly(Plan(96, kept=96), 3000)
    assert not starts_slowly(Plan(400), 3000)
    assert not starts_slowly(Plan(96), 90)


@pytest.mark.parametrize(
    ("plan", "views", "said"),
    [
        (Plan(512), 300, "300 views in one pass"),
        (Plan(375, 1875), 3000, "3000 views in passes of 375, 1875 encoded once, the others twice"),
        (Plan(501, 3000), 3000, "3000 views in passes of 501, each encoded once"),
        (
            Plan(96, compiled=True, replayed=True),
            3000,
            "3000 views in passes of 96, each encoded twice, compiled, replayed",
        ),
    ],
)
def test_a_plan_is_told_in_words(plan: Plan, views: int, said: str) -> None:
    assert plan.told(views) == said


# -- what is noted -----------------------------------------------------------------------------------------------------


def test_a_plan_is_made_once_and_then_read(tmp_path: Path) -> None:
    note = tmp_path / "passes.json"
    first = agreed(note, lambda: Plan(24, 48, 100), ALONE, CPU)
    again = agreed(note, lambda: pytest.fail("planned anew"), ALONE, CPU)
    assert first == again == Plan(24, 48, 100)
    assert read_json(note)["batch"] == 24


def test_another_card_goes_on_with_the_plan_and_says_what_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    note = tmp_path / "passes.json"
    monkeypatch.setattr(passes, "_card", lambda device: ("card A", 80))
    agreed(note, lambda: Plan(24, 48), ALONE, CPU)
    monkeypatch.setattr(passes, "_card", lambda device: ("card B", 141))
    with caplog.at_level(logging.WARNING):
        assert agreed(note, lambda: Plan(1), ALONE, CPU) == Plan(24, 48)
    assert "begun on card A, goes on on card B: the last bits of the result may differ" in caplog.text


def test_a_card_with_less_memory_plans_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "passes.json"
    monkeypatch.setattr(passes, "_card", lambda device: ("large", 80))
    agreed(note, lambda: Plan(24, 48), ALONE, CPU)
    monkeypatch.setattr(passes, "_card", lambda device: ("small", 24))
    assert agreed(note, lambda: Plan(12, 0), ALONE, CPU) == Plan(12, 0)
    assert read_json(note)["card"] == "small"
