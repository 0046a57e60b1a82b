"""Images of noise, and the digits as an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index
from clpdd.storage.layout import SPLITS

NAMES = ["ant", "bee", "cow"]


def pictures(count: int, seed: int = 0, side: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def labels(count: int, classes: int = 3) -> np.ndarray:
    return np.arange(count) % classes


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "index"
    paths = build_index(DatasetSettings(), 0, out)
    assert paths == {split: out / f"{split}.parquet" for split in SPLITS}
    return out


def overlapping() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Row 0 of train is in test, row 1 of train in validation, row 2 of validation in test; row 5 repeats row 4."""
    train, validation, test = (pictures(12, seed=k) for k in range(3))
    train[0], train[1], validation[2], train[5] = test[3], validation[4], test[5], train[4]
    return {split: (images, labels(12)) for split, images in zip(SPLITS, (train, validation, test), strict=True)}
