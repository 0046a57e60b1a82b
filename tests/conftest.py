"""A small real world for the tests: two dozen digits, the shipped encoder, everything cached once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import clpdd.encoders.architectures  # noqa: F401  (registers the shipped encoder's architecture with timm)
from clpdd.config.cache import CacheSettings
from clpdd.config.dataset import DatasetSettings, SplitLimits
from clpdd.config.kernels import KernelSettings
from clpdd.config.settings import Settings
from clpdd.datasets.build import build_index
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.stages.cache import cache_features
from clpdd.stages.kernels import compute_kernels
from clpdd.stages.project import Project, TrainingData
from clpdd.storage.layout import SPLITS, Layout
from tests.browser import open_browser
from tests.clones import Clone, finished_clone
from tests.ranks import Launcher
from tests.runs import run_in

os.environ["DVC_NO_ANALYTICS"] = "1"  # no command of the tests may look for a network
_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class World:
    """Digits (at most 12 images per class and split), cached with the shipped encoder."""

    layout: Layout
    encoder: Encoder

    @property
    def data(self) -> TrainingData:
        """What distillations read."""
        return Project(Settings(), self.layout).training(self.encoder.name)

    def inputs(self, root: Path, **runtime: Any) -> dict[str, Any]:
        """Arguments of ``distill`` that say where things are; results and partial work go below ``root``."""
        return {
            "data": self.data,
            "encoder": self.encoder,
            "target": root / "set",
            "run": run_in(root / "work", **runtime),
        }


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The shipped encoder on the CPU."""
    return load_encoder("clpdd_resnet14", device="cpu")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> World:
    """See ``World``. Session-scoped: tests read it and write elsewhere."""
    layout = Layout(tmp_path_factory.mktemp("world"))
    build_index(
        DatasetSettings(max_per_class=SplitLimits(train=12, validation=6, test=6)), 0, layout.index("train").parent
    )
    for split in SPLITS:
        target = layout.features(encoder.name, split)
        cache_features(layout.index(split), encoder, CacheSettings(), target, run_in(layout.work))
    compute_kernels(
        layout.features(encoder.name, "train"),
        layout.features(encoder.name, "validation"),
        KernelSettings(),
        layout.kernels(encoder.name),
        run_in(layout.work),
    )
    return World(layout, encoder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A copy of the project whose pipeline has run. Session-scoped: tests copy it and work in their own copy."""
    return finished_clone(tmp_path_factory.mktemp("finished") / "clone")


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """See ``tests.browser``."""
    yield from open_browser(tmp_path_factory.mktemp("chromium"))


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    """See ``tests.ranks``."""
    launcher = Launcher()
    yield launcher
    launcher.end()


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """Last bits depend on the number of threads: what a test, or a fixture of many, sets must not reach the others."""
    torch.set_num_threads(_THREADS)
    yield
    torch.set_num_threads(_THREADS)
