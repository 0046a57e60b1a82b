"""What cannot be run is refused by name, before any work and without a traceback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from clpdd.flows import deploy, serve, worker
from clpdd.flows import dvc_commands as dvc
from clpdd.flows.pipeline import main, pipeline

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


def test_a_server_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9/api"  # the port of `discard`, which nobody serves
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert deploy.main([]) == 1
    assert f"no Prefect server answers at {url}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "option"),
    [
        (main, ["-j", "0"]),
        (main, ["-j", "65"]),
        (main, ["-j", "two"]),
        (main, ["--grace", "-1"]),
        (main, ["--grace", "nan"]),
        (serve.main, ["--port", "99999"]),
        (deploy.main, ["--gpus", "0"]),
        (worker.main, ["--limit", "-1"]),
    ],
)
def test_impossible_numbers_are_refused_as_arguments(main: Callable[[list[str]], int], option: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(option)
    assert left.value.code == 2
