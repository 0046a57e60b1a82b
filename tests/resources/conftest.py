"""A small project, run once without trouble, for tests in which the machine refuses."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clpdd.cli.main import main
from clpdd.storage.files import sha256_tree

NAME = "clpdd_resnet14"
STEPS = ("index", "cache", "kernels", "distill", "evaluate", "report")
OUTPUTS = {
    "index": "index",
    "cache": f"features/{NAME}",
    "kernels": f"kernels/{NAME}",
    "distill": f"distilled/{NAME}/clp",
    "evaluate": "results/results.parquet",
    "report": "results/report.json",
}
SETTINGS: dict[str, Any] = {
    "dataset": {"max_per_class": {"train": 12, "validation": 6, "test": 6}},
    "cache": {"batch_size": 16, "chunk_rows": 8, "shard_rows": 24},
    "methods": ["clp"],
    "distill": {
        "steps": 8,
        "augmentations": 1,
        "extend_every": 2,
        "validate_every": 4,
        "preview_every": 2,
        "random_draws": 1,
    },
    "evaluate": {"seeds": 1, "epochs": 5, "views": 2},
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "checkpoint_every_steps": 2},
}


def command(step: str) -> list[str]:
    extra = {"cache": ["--encoder", NAME], "kernels": ["--encoder", NAME]}
    return [step, *(extra | {"distill": ["--encoder", NAME, "--method", "clp"]}).get(step, [])]


@dataclass
class Place:
    """A project folder. ``run`` is the command in this process, ``spawn`` in one of its own."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def options(self) -> list[str]:
        return ["--params", str(self.folder / "params.yaml"), "--data", str(self.data)]

    def run(self, step: str) -> int:
        return main([*self.options, *command(step)])

    def spawn(self, step: str, **options: Any) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "clpdd", *self.options, *command(step)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)

    def output(self, step: str) -> str:
        return sha256_tree(self.data / OUTPUTS[step])

    def forget(self, step: str) -> None:
        """As if neither this step nor a later one had run."""
        for later in STEPS[STEPS.index(step) :]:
            path = self.data / OUTPUTS[later]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            shutil.rmtree(self.data / "work" / later, ignore_errors=True)


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """``main`` installs handlers, as a command should and a test should not."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The whole pipeline, run once without trouble."""
    place = Place(tmp_path_factory.mktemp("finished"))
    (place.folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    for step in STEPS:
        assert place.run(step) == 0
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy of it."""
    shutil.copytree(finished.folder, tmp_path / "place")
    return Place(tmp_path / "place")


def clear(said: str, code: int, expected: str) -> None:
    """``said`` on stderr is a message for people, ``code`` the documented one."""
    assert "Traceback" not in said
    assert expected in said
    assert code in range(1, 8)
    told = [line for line in said.splitlines() if line.startswith("clpdd ")]
    assert len(told) == 1
    assert len(told[0]) < 700
