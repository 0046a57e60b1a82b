"""The cache stage against the bare encoder and bare decoding, and ways to decode JPEG, side by side in one run."""

from __future__ import annotations

import io
import os
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
from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index, index_arrays
from clpdd.datasets.decode import decode_image, decode_reduced
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.preprocessing import Preprocess
from clpdd.features.decoders import Decoders
from clpdd.runtime.machine import available_cores
from clpdd.stages.cache import cache_features
from clpdd.stages.project import Run
from clpdd.storage.files import read_json

from .clock import seconds
from .table import Section

__all__ = ["caching", "jpeg", "sustained"]

_SIDES = (224, 256, 300, 375, 500)  # shorter sides of the photographs that are cached, in pixels
_DECODED = 2048  # images decoded to see how fast that is


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
    with tempfile.TemporaryDirectory() as folder:
        few = images[:2, :8, :8], np.arange(2)  # given, so that nothing is split off
        splits = {"train": (images, np.arange(count) % 2), "validation": few, "test": (255 - few[0], few[1])}
        index_arrays(splits, ["one", "other"], Path(folder) / "index")
        before = _bare(encoder)
        rate = _stage(encoder, Path(folder) / "index" / "train.parquet", Path(folder))
    return max(before, _bare(encoder)), rate


def _bare(encoder: Encoder) -> float:
    """Images per second of the encoder alone."""
    settings = CacheSettings()
    pixels = torch.randint(256, (settings.batch_size, 3, encoder.size, encoder.size), dtype=torch.uint8)
    (spent,) = seconds([lambda: encode(encoder, pixels, len(pixels), settings.precision)], encoder.device, 5)
    return len(pixels) / spent


def _stage(encoder: Encoder, index: Path, folder: Path) -> float:
    """Images per second of the cache stage, from its start to the end of its store."""
    cache_features(index, encoder, CacheSettings(), folder / "train.zarr", Run(work=folder / "work"))
    (clock,) = (folder / "clocks").glob("cache-*.json")
    return float(read_json(clock)["images_per_second"])


def sustained(device: torch.device, models: dict[str, tuple[int, int]], different: int) -> Section:
    """Images per second of the stage over many JPEG files, of decoding on all cores, and of the encoder alone.

    Args:
        models: name -> (pixels, images).
        different: pictures that the files are copies of.
    """
    columns = ["encoder", "images", "bare encoder", "decoding alone, all cores", "cache stage", "cache / the lesser"]
    columns += ["cache / what shared cores allow"]
    section = Section("Sustained caching: JPEG files of 224 to 500 px, images per second", columns)
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        index = _files(root / "photos", max(count for _, count in models.values()), different)
        for name, (size, count) in models.items():
            encoder = Encoder(name, timm.create_model(name, num_classes=0), size).to(device)
            decoding, before = _decoding_alone(encoder, index, min(_DECODED, count), cores), _bare(encoder)
            stage = _stage(encoder, index, root / name)
            bare = max(before, _bare(encoder))
            shared = 1 / (1 / bare + 1 / decoding) if device.type == "cpu" else min(bare, decoding)
            ratio = stage / min(bare, decoding)
            section.add(f"{name}, {size} px", count, bare, decoding, stage, ratio, stage / shared)
    section.notes.append("Decoding and a CPU's encoder share its cores: together they can do 1 / (1 / a + 1 / b).")
    return section


def _files(root: Path, count: int, different: int) -> Path:
    """An index of ``count`` JPEG files in folders of two classes; a picture has one file and many links to it."""
    for split, images in {"train": count, "validation": 2, "test": 2}.items():
        pictures: list[Path] = []
        for number in range(images):
            path = root / split / ("one", "other")[number % 2] / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number < different:
                side = _SIDES[number % len(_SIDES)]
                path.write_bytes(_photograph(side * 4 // 3, side, number))
                pictures.append(path)
            else:
                os.link(pictures[number % different], path)
    train, validation, test = (str(root / split) for split in ("train", "validation", "test"))
    settings = DatasetSettings(
        name="folder", train=train, validation=validation, test=test, duplicates="allow", store="paths"
    )
    build_index(settings, 0, root / "index")
    return root / "index" / "train.parquet"


def _decoding_alone(encoder: Encoder, index: Path, count: int, cores: int) -> float:
    """Images per second that ``cores`` processes decode when nobody encodes."""
    size = CacheSettings().batch_size
    batches = [(first, min(first + size, count)) for first in range(0, count, size)]
    with Decoders() as pool:
        for wanted in (batches[:cores], batches):  # the first time they start
            began = time.perf_counter()
            with pool.decode(index, encoder.preprocess, wanted, cores) as pixels:
                for _ in pixels:
                    pass
        return count / (time.perf_counter() - began)


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
