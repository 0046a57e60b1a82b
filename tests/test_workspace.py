"""The pipeline for notebooks: what is there is found again, and nothing is taken for what it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clpdd import Workspace, index_arrays
from clpdd.config.dataset import DatasetSettings, SplitLimits
from clpdd.datasets.index import Index
from clpdd.encoders.encoder import Encoder

FEW = DatasetSettings(max_per_class=SplitLimits(train=3, validation=2, test=2))


def test_an_index_is_found_again_and_made_again_when_another_hand_replaced_it(tmp_path: Path, encoder: Encoder) -> None:
    train = Workspace(tmp_path, encoder, FEW).layout.index("train")
    made = train.stat().st_mtime_ns
    Workspace(tmp_path, encoder, FEW)
    assert train.stat().st_mtime_ns == made
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 255, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3
    index_arrays({"train": arrays}, ["a", "b", "c"], train.parent)
    Workspace(tmp_path, encoder)
    assert len(Index.open(train).class_names) == 3  # without a dataset: what lies there
    Workspace(tmp_path, encoder, FEW)
    assert len(Index.open(train).class_names) == 10
    train.with_name("test.parquet").unlink()
    Workspace(tmp_path, encoder, FEW)
    assert len(Index.open(train.with_name("test.parquet"))) == 20
