"""Only what decides a result makes it again: edits of code in a copy whose pipeline has run.

DVC may start a stage because a folder that it lists has changed. Such a stage finds its finished work and publishes it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .clones import Clone, change_settings, run, stages_made

CODE = "def _added() -> int:\n    return 1"
OTHER_LOSS = """_plain = GradientMatch.loss
GradientMatch.loss = lambda self, Z, step: _plain(self, Z, step).square()"""


@pytest.mark.slow
def test_what_shows_and_starts_the_work_and_the_report_decide_nothing_that_was_made(
    finished: Clone, tmp_path: Path
) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    made = clone.work
    assert {name.split("/")[0] for name in made} == {"index", "cache", "kernels", "distill", "evaluate"}
    for file in ("runtime/progress.py", "runtime/machine.py", "cli/main.py", "cli/commands.py", "workspace.py"):
        clone.append(f"clpdd/{file}", CODE)
    assert stages_made(clone.repro()) == []

    clone.append("clpdd/report/figures.py", CODE)
    assert stages_made(clone.repro()) == ["report"]
    assert clone.done_since(made) == []


@pytest.mark.slow
def test_the_reader_in_use_decides_the_index_and_the_others_nothing(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    made = clone.work
    clone.append("clpdd/datasets/sources/cifar.py", CODE)
    output = clone.repro()
    assert stages_made(output) == ["index"]
    assert "index of splits is already done" in output
    assert clone.done_since(made) == []

    clone.append("clpdd/datasets/sources/digits.py", CODE)
    assert stages_made(clone.repro()) == ["index"]
    assert clone.done_since(made) == ["index/splits"]


@pytest.mark.slow
def test_a_method_decides_its_own_items(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    made = clone.work
    clone.append("clpdd/methods/lgm.py", OTHER_LOSS)
    output = clone.repro()
    assert "distill of clpdd_resnet14-clp is already done" in output
    lgm = "evaluate/clpdd_resnet14-lgm-clpdd_resnet14"
    assert clone.done_since(made) == [
        "distill/clpdd_resnet14-lgm",
        f"{lgm}/closed_form-bank-2",
        f"{lgm}/closed_form-clean",
        f"{lgm}/sgd-bank-2",
    ]


@pytest.mark.slow
def test_partial_work_survives_an_edit_that_decides_nothing(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    change_settings(clone.folder, {"distill.steps": 60, "runtime.checkpoint_every_steps": 1})
    made = clone.work
    _kill_at_first_checkpoint(clone)
    assert clone.done_since(made) == []
    clone.append("clpdd/runtime/progress.py", CODE)
    clone.append("clpdd/cli/commands.py", CODE)

    output = clone.repro("distill@clpdd_resnet14-clp")
    went_on = re.search(r"continuing at step (\d+) of 60", output)
    assert went_on, output
    assert int(went_on[1]) >= 1
    assert clone.done_since(made) == ["distill/clpdd_resnet14-clp"]


def _kill_at_first_checkpoint(clone: Clone) -> None:
    """Distil until something is saved, then SIGKILL."""
    script = "import sys; from clpdd.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "distill", "--encoder", "clpdd_resnet14", "--method", "clp"],
        cwd=clone.folder,
        env=os.environ | {"PYTHONPATH": str(clone.folder)},
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not list((clone.folder / "data" / "work" / "distill").glob("*/*/checkpoints/step-*.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_the_clones_words_are_those_of_the_program(finished: Clone) -> None:
    """What ``Clone.work`` looks for is there: else a change that it should find would go unseen."""
    assert set(finished.work) == {
        "index/splits",
        *(f"cache/clpdd_resnet14-{split}" for split in ("train", "validation", "test")),
        "kernels/clpdd_resnet14",
        *(f"distill/clpdd_resnet14-{method}" for method in ("clp", "lgm")),
        *(
            f"evaluate/clpdd_resnet14-{method}-clpdd_resnet14/{probes}"
            for method in ("clp", "lgm")
            for probes in ("sgd-bank-2", "closed_form-bank-2", "closed_form-clean")
        ),
    }
    assert "distill" in run(finished.folder, "dvc", "stage", "list", "--name-only")
