"""The pipeline for notebooks: what is there is found again, and nothing is taken for what it is not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from clpdd import Workspace, index_arrays
from clpdd.config.dataset import DatasetSettings, SplitLimits
from clpdd.config.evaluate import EvaluateSettings
from clpdd.config.kernels import KernelSettings
from clpdd.datasets.index import Index
from clpdd.encoders.encoder import Encoder
from clpdd.errors import ArtifactError
from tests.datasets.pictures import png

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


def test_a_set_is_scored_as_it_is_evaluated(tmp_path: Path, encoder: Encoder) -> None:
    work = Workspace(tmp_path, encoder, FEW, kernels=KernelSettings(nearest=1))
    work.distill("centroid")
    quick = EvaluateSettings(protocols=["closed_form"], seeds=1, views=1)
    evaluated = {
        (line["protocol"], line["views"]): line["top1"] for line in work.evaluate("centroid", settings=quick).lines
    }
    found = work.score(work.layout.distilled(encoder.name, "centroid"), quick, random=True)
    assert {(line["protocol"], line["views"]): line["top1"] for line in found} == evaluated
    assert all(isinstance(line["over_random"], float) for line in found)


def test_a_folder_that_changed_before_a_cell_is_run_again_is_noticed(
    tmp_path: Path, encoder: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="clpdd")  # the command, in other tests, lowers it
    for number in range(24):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    photos = DatasetSettings(name="folder", train=str(tmp_path / "photos"))
    kernels = KernelSettings(nearest=2)
    work = Workspace(tmp_path / "run", encoder, photos, kernels=kernels)
    assert work.kernels().counts.tolist() == [9, 9]
    work.distill("centroid")
    quick = EvaluateSettings(protocols=["closed_form"], seeds=1, views=1)
    assert "centroid" in work.evaluate("centroid", settings=quick)
    assert caplog.messages == []
    for number in range(24, 36):
        (tmp_path / "photos" / "c").mkdir(exist_ok=True)
        (tmp_path / "photos" / "c" / f"{number}.png").write_bytes(png(number))
    with pytest.raises(ArtifactError, match=r"distill it again, work.distill\(\"centroid\", settings\)"):
        work.evaluate("centroid", settings=quick)  # by the same object
    (told,) = caplog.messages
    assert told == (
        f"images changed in {tmp_path / 'photos'}: 12 added (c/24.png, c/25.png, ...): "
        f"the index and all that follows are made again"
    )
    assert work.kernels().counts.tolist() == [9, 9, 9]
    work.distill("centroid")  # the remedy
    assert "centroid" in work.evaluate("centroid", settings=quick)
    (tmp_path / "photos" / "c" / "24.png").write_bytes(png(200))
    again = Workspace(tmp_path / "run", encoder, photos, kernels=kernels)  # by the cell that makes it
    assert caplog.messages[1:] == [
        f"images changed in {tmp_path / 'photos'}: 1 changed (c/24.png): the index and all that follows are made again"
    ]
    assert again.kernels().counts.tolist() == [9, 9, 9]
