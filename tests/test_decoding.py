"""Batches of pixels, decoded here or in worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
from PIL import Image

from clpdd.datasets.build import index_arrays
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.preprocessing import Pixels, Preprocess
from clpdd.errors import ArtifactError, DataError, ResourceError
from clpdd.features.decoders import Decoders
from clpdd.features.decoding import Batch, choose_workers
from clpdd.storage.files import sha256_bytes

BATCHES = [(0, 7), (7, 14), (14, 20), (20, 23)]
PREPROCESS = Preprocess(resize=16, crop=16, interpolation="bicubic")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (23, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def index(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    others = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    splits = {
        "train": (images, np.arange(23) % 2),
        "validation": (others[:2], np.arange(2)),
        "test": (others[2:], np.arange(2)),
    }
    return index_arrays(splits, ["a", "b"], tmp_path_factory.mktemp("index"))["train"]


def broken(index: Path, row: int, target: Path) -> Path:
    """The index with one image cut short, and the digest of the cut bytes so that only decoding can notice."""
    table = pq.read_table(index)  # type: ignore[no-untyped-call]
    rows = table.to_pylist()
    rows[row]["bytes"] = rows[row]["bytes"][:40]
    rows[row]["sha256"] = sha256_bytes(rows[row]["bytes"])
    pq.write_table(table.from_pylist(rows, schema=table.schema), target)  # type: ignore[no-untyped-call]
    return target


@contextlib.contextmanager
def decode_batches(
    index: Path, preprocess: Preprocess, batches: list[Batch], workers: int
) -> Iterator[Iterator[Pixels]]:
    """One job of decoders that have no other."""
    with Decoders() as decoders, decoders.decode(index, preprocess, batches, workers) as decoded:
        yield decoded


def no_children(within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_come_in_order_whatever_the_workers(index: Path, images: np.ndarray, workers: int) -> None:
    with decode_batches(index, PREPROCESS, BATCHES, workers) as decoded:
        got = list(decoded)
    assert [len(batch) for batch in got] == [7, 7, 6, 3]
    np.testing.assert_array_equal(np.concatenate(got), images.transpose(0, 3, 1, 2))
    assert no_children(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named_and_leaves_no_process_behind(index: Path, tmp_path: Path, workers: int) -> None:
    path = broken(index, 15, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="train-000015"), decode_batches(path, PREPROCESS, BATCHES, workers) as decoded:
        list(decoded)
    assert no_children(0)


def test_an_index_that_vanished_is_reported_by_its_own_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"gone\.parquet"),
        decode_batches(tmp_path / "gone.parquet", PREPROCESS, BATCHES, 1) as decoded,
    ):
        list(decoded)
    assert no_children(0)


def test_a_killed_worker_is_an_error_not_a_hang(index: Path) -> None:
    many = [(k % 23, k % 23 + 1) for k in range(3000)]
    with decode_batches(index, PREPROCESS, many, 1) as decoded:
        next(decoded)
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ResourceError, match="exit code -9"):
            list(decoded)
    assert no_children(0)


@pytest.mark.parametrize(
    ("decoding", "encoding", "batches", "cores", "workers"),
    [
        (0.01, 0.1, 50, 8, 0),  # half a second in all: done before a process has started
        (0.01, 0.1, 10_000, 8, 1),
        (0.3, 0.1, 1000, 8, 4),  # three would have nothing to spare
        (5.0, 0.1, 1000, 8, 8),
        (5.0, 0.1, 1000, 1, 1),
        (1.0, 0.0, 1000, 2, 2),
    ],
)
def test_workers_follow_what_decoding_and_encoding_take(
    decoding: float, encoding: float, batches: int, cores: int, workers: int
) -> None:
    assert choose_workers(decoding, encoding, batches, cores) == workers


def test_leaving_early_stops_the_workers(index: Path) -> None:
    many = [(0, 23)] * 3000
    with decode_batches(index, PREPROCESS, many, 2) as decoded:
        next(decoded)
    assert no_children(0)


@pytest.mark.parametrize("shape", [(64, 64), (37, 90), (90, 37), (200, 201), (1, 9), (65, 64), (640, 426)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.95])
def test_preprocessing_is_the_encoders_own(shape: tuple[int, int], interpolation: str, crop_fraction: float) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    encoder = Encoder("tiny", timm.create_model("test_resnet", num_classes=0), 48)
    encoder.crop_fraction, encoder.interpolation = crop_fraction, interpolation
    expected = encoder.transform(Image.fromarray(pixels)).numpy()
    got = Preprocess(encoder.resized, 48, interpolation)(Image.fromarray(pixels))
    np.testing.assert_array_equal(got, expected)


def test_a_hair_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(DataError, match="too elongated"):
        Preprocess(224, 224, "bicubic")(Image.new("RGB", (1, 1_000_000)))


# -- callers that are scripts ------------------------------------------------------------------------------------------

_SCRIPT = """
import sys
from pathlib import Path
print("script body runs", flush=True)
import numpy as np
from clpdd.datasets.build import index_arrays
from clpdd.encoders.preprocessing import Preprocess
from clpdd.features.decoders import Decoders
index = Path(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 8, 8, 3), dtype=np.uint8)
splits = zip(("train", "validation", "test"), pixels, strict=True)
index_arrays({split: (own, np.arange(20) % 2) for split, own in splits}, ["a", "b"], index)
how = index / "train.parquet", Preprocess(8, 8, "bicubic"), [(0, 8), (8, 16), (16, 20)], 2
with Decoders() as decoders, decoders.decode(*how) as batches:
    print([len(batch) for batch in batches])
print(__name__, __spec__ is None or __spec__.name)
"""


@pytest.mark.parametrize("way", ["file", "stdin", "command", "module"])
def test_a_script_without_a_main_guard_runs_once_and_to_its_end(way: str, tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(_SCRIPT)
    before = {"file": [str(script)], "stdin": ["-"], "command": ["-c", _SCRIPT], "module": ["-m", "unguarded"]}[way]
    done = subprocess.run(
        [sys.executable, *before, str(tmp_path / "run")],
        input=_SCRIPT if way == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    known = "unguarded" if way == "module" else "True"  # what a module knows of itself is left as it was
    assert done.stdout.splitlines() == ["script body runs", "[8, 8, 4]", f"__main__ {known}"]
