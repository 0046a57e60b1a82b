"""A small real world for the tests: two dozen digits, the shipped encoder, everything cached once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from clpdd.config import CacheSettings, DatasetSettings, KernelSettings, SplitLimits
from clpdd.datasets import build_index
from clpdd.encoders import Encoder, load_encoder
from clpdd.features import cache_features
from clpdd.kernels import compute_kernels
from clpdd.layout import SPLITS, Layout
from tests.browser import open_browser
from tests.ranks import Launcher

os.environ["DVC_NO_ANALYTICS"] = "1"  # no command of the tests may look for a network
_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class World:
    """Digits (at most 12 images per class and split), cached with the shipped encoder."""

    layout: Layout
    encoder: Encoder

    def inputs(self, root: Path) -> dict[str, object]:
        """Arguments of ``distill`` that say where things are; results and partial work go below ``root``."""
        name = self.encoder.name
        return {
            "index": self.layout.index("train"),
            "train": self.layout.features(name, "train"),
            "validation": self.layout.features(name, "validation"),
            "kernels": self.layout.kernels(name),
            "encoder": self.encoder,
            "target": root / "set",
            "work_root": root / "work",
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
        cache_features(layout.index(split), encoder, CacheSettings(workers=0), target, layout.work)
    compute_kernels(
        layout.features(encoder.name, "train"),
        layout.features(encoder.name, "validation"),
        KernelSettings(),
        layout.kernels(encoder.name),
        layout.work,
    )
    return World(layout, encoder)


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
