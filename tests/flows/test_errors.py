"""What an exit code says about running a stage again."""

from __future__ import annotations

import copy

import pytest

from clpdd.flows import errors


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *((code, errors.StageRefused) for code in (1, 2, 3, 4, 6, 134, 139)),
        (5, errors.StageStarved),
        (7, errors.StageBusy),
        *((code, errors.StageInterrupted) for code in (75, 128 + 15, 128 + 9, 130)),
    ],
)
def test_every_exit_code_has_its_meaning(code: int, kind: type[errors.StageError]) -> None:
    error = errors.stage_error("cache@a", code, ["distill.steps must be >= 1"])
    assert type(error) is kind
    assert "cache@a" in str(error)
    assert "distill.steps must be >= 1" in str(error)
    assert str(copy.copy(error)) == str(error)  # rebuilt from its parts, as between processes
