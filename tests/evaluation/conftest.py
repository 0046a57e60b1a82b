"""Digits, random encoders and distilled sets to evaluate, and a finished evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

from clpdd.config.cache import CacheSettings
from clpdd.config.dataset import DatasetSettings, SplitLimits
from clpdd.config.evaluate import EvaluateSettings
from clpdd.config.kernels import KernelSettings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.evaluation.inputs import EvaluationData
from clpdd.stages.cache import cache_features
from clpdd.stages.evaluate import evaluate
from clpdd.stages.kernels import compute_kernels
from tests.runs import run_in

SETTINGS = EvaluateSettings(seeds=2, epochs=30, views=4, learning_rate=0.05, ridge=0.1)
NAMES = ("results.parquet", "metrics.json", "details.json", "plots/accuracy.csv")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class World:
    """Everything the stage reads."""

    root: Path
    encoders: Mapping[str, Encoder]
    distilled: Mapping[tuple[str, str], Path]

    def evaluate(self, room: Path, settings: EvaluateSettings = SETTINGS, **changes: Any) -> Path:
        torch.set_num_threads(1)  # as in the processes that it is compared with
        encoders: Mapping[str, Encoder] = changes.pop("encoders", self.encoders)
        stores = {e: {s: self.root / e / f"{s}.zarr" for s in SPLITS} for e in encoders} | changes.pop("stores", {})
        kernels = {e: self.root / e / "kernels" for e in encoders} | changes.pop("kernels", {})
        evaluate(
            changes.pop("distilled", self.distilled),
            {e: EvaluationData(encoder=encoders[e], kernels=kernels[e], **stores[e]) for e in encoders},
            settings,
            room / "results",
            run=run_in(room / "work"),
            **changes,
        )
        return room / "results"


def open_world(root: Path) -> World:
    """The world of ``build_world``, also for another process."""
    torch.set_num_threads(1)
    names = ("one", "two")
    encoders = {
        e: load_encoder(e, model="clpdd_resnet14", weights=root / f"{e}.safetensors", image_size=32, device="cpu")
        for e in names
    }
    pairs = [("one", "clp"), ("one", "random"), ("one", "full"), ("two", "clp"), ("two", "full")]
    return World(root, encoders, {pair: root / "distilled" / "-".join(pair) for pair in pairs})


def build_world(root: Path) -> World:
    for number, name in enumerate(("one", "two")):
        torch.manual_seed(number)
        save_file(timm.create_model("clpdd_resnet14", num_classes=0).state_dict(), root / f"{name}.safetensors")
    world = open_world(root)
    limits = SplitLimits(train=12, validation=6, test=8)
    index = build_index(DatasetSettings(max_per_class=limits), 0, root / "index")
    for name, encoder in world.encoders.items():
        for split in SPLITS:
            target = root / name / f"{split}.zarr"
            cache_features(index[split], encoder, CacheSettings(), target, run_in(root / "work"), progress=False)
        stores = root / name / "train.zarr", root / name / "validation.zarr"
        compute_kernels(*stores, KernelSettings(), root / name / "kernels", run_in(root / "work"))
    train = Index.open(index["train"])
    for (encoder_name, method), folder in world.distilled.items():
        made_set(train, method, world.encoders[encoder_name]).save(folder)
    return world


def made_set(train: Index, method: str, encoder: Encoder) -> DistilledSet:
    """Real training images in the guise of every method: one per class, three draws for ``random``."""
    info = {"method": method, "dataset": "digits", "images_per_class": 1, "encoder": encoder.describe()}
    if method == "full":
        nothing = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        return DistilledSet(nothing, torch.zeros(0, dtype=torch.int64), train.class_names, info)
    labels = np.asarray(train.labels)
    draws = 3 if method == "random" else 1
    rows = [int((labels == c).nonzero()[0][draw]) for draw in range(draws) for c in range(10)]
    images = torch.stack([torch.from_numpy(np.array(train.image(row).resize((32, 32)))) for row in rows])
    draw = torch.arange(draws).repeat_interleave(10)
    return DistilledSet(
        images.permute(0, 3, 1, 2).contiguous(), torch.arange(10).repeat(draws), train.class_names, info, draw=draw
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def room(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation."""
    room = tmp_path_factory.mktemp("room")
    world.evaluate(room)
    return room


def contents(results: Path) -> dict[str, bytes]:
    return {name: (results / name).read_bytes() for name in NAMES}


def rows_of(results: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(results / "results.parquet").to_pylist()
    return rows
