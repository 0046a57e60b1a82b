"""Time due beside a method's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clpdd.benchmark.due import owed, own_seconds, preparation, whole_seconds
from clpdd.benchmark.page import write_comparison
from clpdd.benchmark.table import table_bytes
from clpdd.config.distill import DistillSettings
from clpdd.storage.files import write_json

from .conftest import made_rows

DUE = {"features_seconds": 20.0, "kernels_seconds": 3.0}
NONE = {"features_seconds": 0.0, "kernels_seconds": 0.0}


@pytest.fixture
def clocks(tmp_path: Path) -> Path:
    seconds = {"cache-a-b-train": 16.0, "cache-a-b-validation": 4.0, "cache-a-b-test": 50.0, "kernels-a-b": 3.0}
    for name, value in seconds.items():
        write_json(tmp_path / f"{name}.json", {"seconds": value})
    return tmp_path


@pytest.mark.parametrize(
    ("method", "start", "due"),
    [
        ("clp", "noise", DUE),
        ("sfm", "noise", DUE),
        ("herding", "noise", DUE),
        ("centroid", "noise", DUE),
        ("lgm", "noise", NONE),
        ("lgm", "centroid", DUE),
        ("random", "centroid", NONE),
        ("full", "centroid", DUE),
    ],
)
def test_features_and_kernels_are_due_to_methods_that_read_them(
    clocks: Path, method: str, start: str, due: dict[str, float]
) -> None:
    settings = DistillSettings.model_validate({"initialisation": start})
    assert preparation(clocks, "a/b", method, settings) == due


def test_a_missing_clock_reading_is_missing(clocks: Path) -> None:
    (clocks / "cache-a-b-validation.json").unlink()
    found = preparation(clocks, "a/b", "clp", DistillSettings())
    assert found == {"features_seconds": None, "kernels_seconds": 3.0}


def test_the_whole_is_all_parts_or_nothing() -> None:
    steps: dict[str, Any] = DUE | {"step": 8, "seconds": 5.0, "setup_seconds": 2.0, "selection_seconds": None}
    assert (own_seconds(steps), whole_seconds(steps), owed(steps)) == (5.0, 30.0, ())
    choice: dict[str, Any] = DUE | {"step": None, "seconds": None, "setup_seconds": None, "selection_seconds": 7.0}
    assert (own_seconds(choice), whole_seconds(choice), owed(choice)) == (7.0, 30.0, ())
    lacking = steps | {"features_seconds": None}
    assert (own_seconds(lacking), whole_seconds(lacking), owed(lacking)) == (5.0, None, ("features",))


def test_the_page_tells_both_times_and_names_what_was_not_measured(tmp_path: Path) -> None:
    def drawn(**due: Any) -> str:
        rows = [row | due | ({"selection_seconds": 7.0} if row["step"] is None else {}) for row in made_rows()]
        (tmp_path / "t.parquet").write_bytes(table_bytes(rows))
        return write_comparison([tmp_path / "t.parquet"], tmp_path / "page.html").read_text()

    assert '<td class="num">5 s</td><td class="num">30 s</td>' in drawn(**DUE, setup_seconds=2.0)
    assert "<small>kernels, set-up</small>" in drawn(features_seconds=20.0)
