"""What cannot be run is refused by name, before any work and without a traceback."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.logging import disable_run_logger

from flows import dvc
from flows.pipeline import main, pipeline

from .conftest import Toy


def refused(toy: Toy, **parameters: Any) -> str:
    """The message of a flow that fails, having made nothing."""
    with disable_run_logger():
        state = pipeline.fn(**{"folder": str(toy.root), **parameters})
    assert state.is_failed()
    assert not (toy.root / "data" / "index.txt").exists()
    return state.message or ""


def test_a_push_without_a_remote_is_refused_at_once(toy: Toy) -> None:
    assert not dvc.has_remote(toy.root)
    assert "dvc remote add --default" in refused(toy, push=True)
    dvc.run(["dvc", "remote", "add", "--default", "store", str(toy.root / "store")], toy.root, lambda line: None)
    assert dvc.has_remote(toy.root)


def test_mistakes_are_messages(toy: Toy) -> None:
    assert "unknown target distil: known are index" in refused(toy, targets=["distil"])
    assert "distil: unknown key; did you mean distill?" in refused(toy, settings=["distil.steps=3"])
    assert "must read section.key=value" in refused(toy, settings=["steps"])
    assert "holds no dvc.yaml" in refused(toy, folder=str(toy.root / "data"))


@pytest.mark.parametrize("option", [["-j", "0"], ["-j", "two"], ["--grace", "-1"], ["--grace", "nan"]])
def test_impossible_numbers_are_refused_as_arguments(option: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(option)
    assert left.value.code == 2
