"""The cache stage against the bare encoder on random images of the same shape, in one run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import timm
import torch

from clpdd.config.cache import CacheSettings
from clpdd.datasets.build import index_arrays
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.stages.cache import cache_features
from clpdd.stages.project import Run
from clpdd.storage.files import read_json

from .clock import seconds
from .table import Section

__all__ = ["caching"]


def caching(device: torch.device, models: dict[str, tuple[int, int]]) -> Section:
    """Images per second of the stage and of the encoder alone; ``models``: name -> (pixels, images)."""
    columns = ["encoder", "images", "bare encoder, images/s", "cache stage, images/s", "cache / bare"]
    section = Section("Feature caching: PNG images of the encoder's size, decoded, encoded, written", columns)
    for name, (size, count) in models.items():
        encoder = Encoder(name, timm.create_model(name, num_classes=0), size).to(device)
        bare, stage = _rates(encoder, count)
        section.add(f"{name}, {size} px", count, bare, stage, stage / bare)
    section.notes.append("Decoding shares the cores with the encoder here; on a GPU it runs beside it.")
    return section


def _rates(encoder: Encoder, count: int) -> tuple[float, float]:
    """Images per second of the encoder alone, before the stage or after it, whichever is more, and of the stage."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, encoder.size // 8, encoder.size // 8, 3), dtype=np.uint8)
    images = small.repeat(8, axis=1).repeat(8, axis=2)  # compresses like a picture, not like noise
    settings = CacheSettings()
    pixels = torch.randint(256, (settings.batch_size, 3, encoder.size, encoder.size), dtype=torch.uint8)

    def bare() -> float:
        (spent,) = seconds([lambda: encode(encoder, pixels, len(pixels), settings.precision)], encoder.device, 5)
        return len(pixels) / spent

    with tempfile.TemporaryDirectory() as folder:
        few = images[:2, :8, :8], np.arange(2)  # given, so that nothing is split off
        splits = {"train": (images, np.arange(count) % 2), "validation": few, "test": (255 - few[0], few[1])}
        index_arrays(splits, ["one", "other"], Path(folder) / "index")
        before = bare()
        cache_features(
            Path(folder) / "index" / "train.parquet", encoder, settings, Path(folder) / "train.zarr",
            Run(work=Path(folder) / "work"),
        )  # fmt: skip
        (clock,) = (Path(folder) / "clocks").glob("cache-*.json")
        rate = float(read_json(clock)["images_per_second"])
    return max(before, bare()), rate
