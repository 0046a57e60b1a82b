"""What torch is told for a CUDA device; it can be told so without one."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from clpdd.encoders.deterministic import deterministic
from clpdd.errors import SettingsError

CUDA = torch.device("cuda")
MEMORY: Any = torch.utils.deterministic


def told() -> tuple[Any, ...]:
    """All that decides which kernels torch takes."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.deterministic,
        MEMORY.fill_uninitialized_memory,
    )


def without_a_repeating_version() -> None:
    """Torch refuses this on every device when only deterministic kernels are allowed."""
    torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))


@pytest.mark.parametrize("attempt", [None, lambda: torch.ones(2).sum()])
def test_it_holds_for_the_block_alone(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = told()
    with deterministic(CUDA, attempt):
        assert told() == (True, attempt is None, True, False)
    assert told() == before
    with pytest.raises(RuntimeError, match="something else"), deterministic(CUDA, attempt):
        raise RuntimeError("something else")
    assert told() == before


def test_a_cpu_needs_none_of_it() -> None:
    before = told()
    with deterministic(torch.device("cpu"), lambda: pytest.fail("nothing to find out")):
        assert told() == before


def test_what_cannot_repeat_itself_is_named_and_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), deterministic(CUDA, without_a_repeating_version):
        with pytest.warns(UserWarning, match="put_"):
            without_a_repeating_version()
    assert "may differ in the last bits from run to run: put_" in caplog.text


def test_what_the_attempt_did_not_show_is_a_setting_to_change() -> None:
    with (
        pytest.raises(SettingsError, match=r"put_.*set runtime\.deterministic: false"),
        deterministic(CUDA, lambda: None),
    ):
        without_a_repeating_version()


def test_an_attempt_that_fails_otherwise_is_an_error() -> None:
    before = told()

    def fail() -> None:
        raise RuntimeError("broken weights")

    with pytest.raises(RuntimeError, match="broken weights"), deterministic(CUDA, fail):
        pass
    assert told() == before
