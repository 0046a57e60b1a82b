"""The cache stage against the bare encoder on random images of the same shape, and ways to decode JPEG, in one run."""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image

from clpdd.config.cache import CacheSettings
from clpdd.datasets.build import index_arrays
from clpdd.datasets.decode import decode_image, decode_reduced
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.preprocessing import Preprocess
from clpdd.stages.cache import cache_features
from clpdd.stages.project import Run
from clpdd.storage.files import read_json

from .clock import seconds
from .table import Section

__all__ = ["caching", "jpeg"]


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


def jpeg(device: torch.device, model: tuple[str, int], sides: tuple[int, ...], count: int, repeats: int) -> Section:
    """JPEG images decoded in full and at reduced scale, and resized: rates on one core, distance of the features.

    Args:
        model: name and pixels of the encoder, whose weights are random.
        sides: shorter sides of the images, in pixels; the longer ones are 4/3 of them.
        count: images of each size.
    """
    columns = ["JPEG", "exact, images/s", "reduced, images/s", "quicker by", "pixels differ by, of 255"]
    columns += ["features differ by", "1 - cosine"]
    encoder = Encoder(model[0], timm.create_model(model[0], num_classes=0), model[1]).to(device)
    section = Section(f"Decoding JPEG images for {model[0]}, {model[1]} px", columns)
    for side in sides:
        files = [_photograph(side * 4 // 3, side, seed) for seed in range(count)]
        found, rates = [], []
        for preprocess in (encoder.preprocess, replace(encoder.preprocess, jpeg="reduced")):
            spent = []
            for _ in range(repeats):
                began = time.process_time()  # decoding is done in one thread
                pixels = np.stack([_pixels(data, preprocess) for data in files])
                spent.append(time.process_time() - began)
            rates.append(count / min(spent))
            found.append((pixels, encode(encoder, torch.from_numpy(pixels), 16).cpu().double()))
        (pixels, features), (others, near) = found
        off = float(np.abs(pixels.astype(float) - others).mean())
        apart = float((near - features).norm() / features.norm())
        angle = max(0.0, 1 - float(torch.cosine_similarity(near, features).mean()))
        section.add(f"{side * 4 // 3} x {side}", *rates, rates[1] / rates[0], off, apart, angle)
    section.notes.append("Pictures with shades and edges at every scale, quality 90; seconds of CPU, the least.")
    return section


def _pixels(data: bytes, preprocess: Preprocess) -> NDArray[np.uint8]:
    if preprocess.jpeg == "exact":
        return preprocess(decode_image(data, len(data) * 1000, "a picture"))
    return preprocess(*decode_reduced(data, len(data) * 1000, "a picture", preprocess.least))


def _photograph(width: int, height: int, seed: int) -> bytes:
    """A JPEG file whose power falls with the frequency as it does in photographs."""
    rng = np.random.default_rng(seed)
    image, weight, side = np.zeros((height, width, 3), np.float32), 1.0, 4
    while side < height:
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += weight * (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128)
        weight, side = weight / 2, side * 2
    stream = io.BytesIO()
    Image.fromarray(np.clip(128 + image, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()
