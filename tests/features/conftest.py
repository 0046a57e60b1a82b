"""An index of noise, an encoder of random weights, and their finished store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from clpdd.config.cache import CacheSettings
from clpdd.datasets.build import index_arrays
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import load_encoder
from clpdd.stages.cache import cache_features
from tests.runs import run_in

ROWS = 150
SMALL = CacheSettings(dtype="float32", batch_size=12, chunk_rows=8, shard_rows=32)
SHARDS = 5


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("clpdd_resnet14", num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(model.state_dict(), path)
    return path


def make_encoder(weights: Path, name: str = "clpdd_resnet14", size: int = 32) -> Encoder:
    return load_encoder(name, model="clpdd_resnet14", weights=weights, image_size=size, device="cpu")


@pytest.fixture
def encoder(weights: Path) -> Encoder:
    return make_encoder(weights)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (ROWS, 32, 40, 3), dtype=np.uint8)
    held_out = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    splits = {
        "train": (images, np.arange(ROWS) % 3),
        "validation": (held_out[:3], np.arange(3)),
        "test": (held_out[3:], np.arange(3)),
    }
    return index_arrays(splits, ["ä", "b", "c"], tmp_path_factory.mktemp("index"))["train"]


@pytest.fixture(scope="session")
def finished(index: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run's store; read only."""
    root = tmp_path_factory.mktemp("finished")
    cache_features(index, make_encoder(weights), SMALL, root / "train.zarr", run_in(root / "work"))
    return root / "train.zarr"


@contextmanager
def counted(encoder: Encoder, fail_at: int | None = None) -> Iterator[list[int]]:
    """Sizes of the batches encoded; the one with number ``fail_at`` fails."""
    sizes: list[int] = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if fail_at is not None and len(sizes) == fail_at:
            raise KeyboardInterrupt
        sizes.append(len(inputs[0]))

    handle = encoder.register_forward_pre_hook(count)
    try:
        yield sizes
    finally:
        handle.remove()


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
