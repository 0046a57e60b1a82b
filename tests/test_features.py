"""Encoding into the feature store: exact, resumable, refusing what is damaged."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import zarr
from safetensors.torch import load_file, save_file

from clpdd.config import CacheSettings
from clpdd.datasets import Index, index_arrays
from clpdd.encoders import Encoder, load_encoder
from clpdd.errors import ArtifactError, NumericalError, ResourceError
from clpdd.features import FeatureStore, cache_features
from clpdd.files import sha256_tree
from clpdd.precision import encode
from flows.dvc import Stage, forget

ROWS = 150
SMALL = CacheSettings(dtype="float32", batch_size=12, workers=0, chunk_rows=8, shard_rows=32)
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
    cache_features(index, make_encoder(weights), SMALL, root / "train.zarr", root / "work")
    return root / "train.zarr"


@pytest.fixture
def store(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy.zarr"))


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


def direct(index: Path, encoder: Encoder) -> torch.Tensor:
    opened = Index.open(index)
    images = torch.stack([encoder.transform(opened.image(row)) for row in range(len(opened))])
    return encode(encoder, images, batch=50)


# -- what is stored -------------------------------------------------------------------------------------------------


def test_store_holds_the_encoders_features_in_the_order_of_the_index(
    index: Path, encoder: Encoder, finished: Path
) -> None:
    store, opened = FeatureStore.open(finished), Index.open(index)
    torch.testing.assert_close(store.features(), direct(index, encoder), rtol=1e-5, atol=1e-6)
    assert (len(store), store.dim, store.split, store.dtype) == (ROWS, 768, "train", "float32")
    assert store.ids == opened.ids
    assert store.labels.dtype == torch.int64
    assert store.labels.tolist() == opened.labels.tolist()
    assert store.class_names == ["ä", "b", "c"]
    assert store.encoder == encoder.describe()
    assert store.index == opened.digest


def test_float16_differs_by_its_rounding_alone(index: Path, encoder: Encoder, finished: Path, tmp_path: Path) -> None:
    half = cache_features(
        index, encoder, SMALL.model_copy(update={"dtype": "float16"}), tmp_path / "half.zarr", tmp_path
    )
    exact = FeatureStore.open(finished)
    assert half.dtype == "float16"
    assert torch.equal(half.features(torch.float16), exact.features().half())
    assert half.digest != exact.digest


def test_the_encoder_works_in_the_precision_asked_for(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    rough = SMALL.model_copy(update={"precision": "bfloat16"})
    found = cache_features(index, encoder, rough, tmp_path / "rough.zarr", tmp_path).features()
    exact = FeatureStore.open(finished).features()
    error = (found - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.03
    opened = Index.open(index)
    images = torch.stack([encoder.transform(opened.image(row)) for row in range(len(opened))])
    torch.testing.assert_close(found, encode(encoder, images, precision="bfloat16"), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rows", [1, 7, 8, 32, 100, ROWS, 10_000])
def test_blocks_are_the_features_in_order(finished: Path, rows: int) -> None:
    store = FeatureStore.open(finished)
    blocks = list(store.blocks(rows))
    assert all(len(Z) == rows for Z, _ in blocks[:-1])
    assert torch.equal(torch.cat([Z for Z, _ in blocks]), store.features())
    assert torch.equal(torch.cat([labels for _, labels in blocks]), store.labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 40, 10_000])
def test_a_scan_is_the_blocks_in_two_buffers(finished: Path, rows: int, dtype: torch.dtype) -> None:
    store = FeatureStore.open(finished)
    buffers = set()
    for (Z, labels), (expected, wanted) in zip(store.scan(rows, dtype), store.blocks(rows), strict=True):
        assert torch.equal(Z, expected.to(dtype))
        assert torch.equal(labels, wanted)
        buffers.add(Z.data_ptr())
    assert len(buffers) == min(2, -(-ROWS // rows))


def test_any_stretch_of_rows_is_what_zarr_reads(finished: Path) -> None:
    store, array = FeatureStore.open(finished), zarr.open_array(str(finished / "features"), mode="r")
    for start, stop in [
        (0, 0),
        (0, 1),
        (5, 9),
        (8, 16),
        (30, 35),
        (31, 97),
        (149, 150),
        (140, 999),
        (0, ROWS),
        (ROWS, 999),
    ]:
        np.testing.assert_array_equal(store.stored(start, stop), np.asarray(array[start:stop]))


def test_a_scan_that_is_left_early_ends_its_thread(finished: Path) -> None:
    scan = FeatureStore.open(finished).scan(8)
    next(scan)
    scan.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("features")]


def test_a_shard_is_a_file_and_zarr_alone_can_read_it(finished: Path) -> None:
    assert len([p for p in (finished / "features").rglob("*") if p.is_file()]) == SHARDS + 1
    group = zarr.open_group(str(finished), mode="r")
    assert group["features"].shape == (ROWS, 768)  # type: ignore[union-attr]
    assert not list(finished.rglob("*.partial"))


@pytest.mark.parametrize("workers", [1, 2, None])
def test_bytes_do_not_depend_on_the_workers(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, workers: int | None
) -> None:
    settings = SMALL.model_copy(update={"workers": workers})
    cache_features(index, encoder, settings, tmp_path / "train.zarr", tmp_path / "work")
    assert sha256_tree(tmp_path / "train.zarr") == sha256_tree(finished)


def test_chunking_changes_the_files_and_not_the_content(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    settings = SMALL.model_copy(update={"chunk_rows": 4})
    other = cache_features(index, encoder, settings, tmp_path / "train.zarr", tmp_path / "work")
    assert other.digest == FeatureStore.open(finished).digest


# -- resuming -------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_at_the_first_unfinished_shard(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    with counted(encoder, fail_at=7), pytest.raises(KeyboardInterrupt):  # batches of 12, 12, 8 per shard of 32
        cache_features(index, encoder, SMALL, target, work)
    assert not target.exists()
    measured: list[tuple[int, float]] = []
    with counted(encoder) as sizes, caplog.at_level(logging.INFO):
        cache_features(index, encoder, SMALL, target, work, measured=lambda n, s: measured.append((n, s)))
    assert "2 of 5 shards are finished already" in caplog.text
    assert sum(sizes) == ROWS - 2 * 32 == measured[0][0]
    assert measured[0][1] > 0
    assert sha256_tree(target) == sha256_tree(finished)


def test_a_finished_store_is_published_again_without_encoding(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    cache_features(index, encoder, SMALL, target, work)
    shutil.rmtree(target)
    with counted(encoder) as sizes:
        cache_features(index, encoder, SMALL, target, work)
    assert sizes == []
    assert sha256_tree(target) == sha256_tree(finished)


def test_a_shard_altered_since_is_not_trusted(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    with counted(encoder, fail_at=10), pytest.raises(KeyboardInterrupt):
        cache_features(index, encoder, SMALL, target, work)
    (shard,) = work.rglob("features/c/1/0")
    flip(shard, 1000)
    (shard.parent / "0.0123abcd.partial").write_bytes(b"what zarr leaves behind when it is killed")
    with counted(encoder) as sizes:
        cache_features(index, encoder, SMALL, target, work)
    assert "features/c/1/0" in caplog.text
    assert "made again" in caplog.text
    assert sum(sizes) == ROWS - 2 * 32
    assert sha256_tree(target) == sha256_tree(finished)


@pytest.mark.parametrize("damage", ["metadata", "record", "list"])
def test_damaged_partial_work_is_made_again(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, damage: str
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    with counted(encoder, fail_at=7), pytest.raises(KeyboardInterrupt):
        cache_features(index, encoder, SMALL, target, work)
    (file,) = work.rglob("features/zarr.json" if damage == "metadata" else "shards.json")
    file.write_text("[1, 2]" if damage == "list" else file.read_text()[:-20])
    cache_features(index, encoder, SMALL, target, work)
    assert sha256_tree(target) == sha256_tree(finished)


def test_other_settings_or_encoders_have_work_folders_of_their_own(index: Path, weights: Path, tmp_path: Path) -> None:
    def run(encoder: Encoder, settings: CacheSettings) -> None:
        with counted(encoder, fail_at=4), pytest.raises(KeyboardInterrupt):
            cache_features(index, encoder, settings, tmp_path / "train.zarr", tmp_path / "work")

    run(make_encoder(weights), SMALL)
    run(make_encoder(weights), SMALL.model_copy(update={"workers": 1}))  # cannot change a byte
    assert len(list((tmp_path / "work").rglob("fingerprint.json"))) == 1
    run(make_encoder(weights), SMALL.model_copy(update={"dtype": "float16"}))
    run(make_encoder(weights, size=24), SMALL)
    run(make_encoder(weights, name="other"), SMALL)
    assert len(list((tmp_path / "work").rglob("fingerprint.json"))) == 4
    state = load_file(weights)
    state["conv1.0.weight"] += 1
    save_file(state, tmp_path / "changed.safetensors")
    run(make_encoder(tmp_path / "changed.safetensors"), SMALL)
    assert len(list((tmp_path / "work").rglob("fingerprint.json"))) == 5


def test_the_flow_forgets_the_work_of_that_encoder_alone(index: Path, weights: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name in ("one", "one-more"):
        encoder = make_encoder(weights, name)
        with counted(encoder, fail_at=2), pytest.raises(KeyboardInterrupt):
            cache_features(index, encoder, SMALL, tmp_path / f"{name}.zarr", work)
    forget(work, [Stage("cache@one", (), str(tmp_path), ())])
    assert {found.parents[1].name for found in work.rglob("fingerprint.json")} == {"one-more-train"}


KILLED = """
import sys
from pathlib import Path

if __name__ == "__main__":
    import torch
    from clpdd.config import CacheSettings
    from clpdd.encoders import load_encoder
    from clpdd.features import cache_features

    index, weights, target, work = map(Path, sys.argv[1:5])
    encoder = load_encoder("clpdd_resnet14", weights=weights, image_size=64, device="cpu")
    torch.set_num_threads(1)
    cache_features(index, encoder, CacheSettings.model_validate_json(sys.argv[5]), target, work)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The number of threads may decide last bits, so runs that are compared use the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in listing.read_text().split()] if listing.exists() else []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_run_leaves_no_process_and_resumes_to_the_same_bytes(
    index: Path, weights: Path, tmp_path: Path
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    settings = CacheSettings(dtype="float32", batch_size=6, workers=2, chunk_rows=5, shard_rows=10)
    inputs = (index, weights, target, work, settings.model_dump_json())
    (tmp_path / "run.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "run.py"), *map(str, inputs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    def finished_shards() -> int:
        records = list(work.rglob("shards.json"))
        return len(json.loads(records[0].read_text())) - 1 if records else 0  # one entry is the array's metadata

    done = 0
    for signum in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, env=environment)
        assert eventually(lambda done=done: finished_shards() >= done + 2)  # type: ignore[misc]
        offspring = children(process.pid)
        assert len(offspring) >= 2
        process.send_signal(signum)
        assert process.wait(120) == -signum
        assert eventually(lambda offspring=offspring: not any(map(alive, offspring)))  # type: ignore[misc]
        done = finished_shards()
    assert not target.exists()
    encoder = make_encoder(weights, size=64)
    with counted(encoder) as sizes:
        cache_features(index, encoder, settings, target, work)
    assert 0 < sum(sizes) == ROWS - 10 * done
    cache_features(index, encoder, settings, tmp_path / "whole.zarr", tmp_path / "other")
    assert sha256_tree(target) == sha256_tree(tmp_path / "whole.zarr")


# -- refusals -------------------------------------------------------------------------------------------------------


def shifted(encoder: Encoder, amount: float) -> Encoder:
    """The encoder with ``amount`` added ahead of its last activation."""
    state = encoder.model.state_dict()
    state[[key for key in state if key.endswith("bn3.bias")][-1]].add_(amount)
    return encoder


def test_overflow_of_float16_names_the_image_and_the_remedy(index: Path, encoder: Encoder, tmp_path: Path) -> None:
    half = SMALL.model_copy(update={"dtype": "float16"})
    with pytest.raises(NumericalError, match=r"'train-0+'.*float16.*cache\.dtype: float32"):
        cache_features(index, shifted(encoder, 1e6), half, tmp_path / "a.zarr", tmp_path / "work")
    assert not (tmp_path / "a.zarr").exists()
    cache_features(index, encoder, SMALL, tmp_path / "a.zarr", tmp_path / "work")


def test_nan_features_are_refused_in_every_dtype(index: Path, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"NaN or infinite features for image 'train-0+'"):
        cache_features(index, shifted(encoder, float("nan")), SMALL, tmp_path / "a.zarr", tmp_path / "work")


def test_a_missing_index_and_a_store_where_a_file_stands(encoder: Encoder, index: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.parquet"):
        cache_features(tmp_path / "gone.parquet", encoder, SMALL, tmp_path / "a.zarr", tmp_path / "work")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="file"):
        cache_features(index, encoder, SMALL, tmp_path / "a.zarr", tmp_path / "file")


def test_trouble_in_a_worker_ends_the_run_and_the_workers(encoder: Encoder, index: Path, tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    data = bytearray(index.read_bytes())
    at = data.index(b"\x89PNG", len(data) // 2)
    data[at : at + 4] = b"\0\0\0\0"
    path.write_bytes(data)
    settings = SMALL.model_copy(update={"workers": 1})
    with pytest.raises(ArtifactError, match=r"train\.parquet is damaged"):
        cache_features(path, encoder, settings, tmp_path / "a.zarr", tmp_path / "work")
    assert not multiprocessing.active_children()
    assert not (tmp_path / "a.zarr").exists()


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def read(path: Path) -> None:
    store = FeatureStore.open(path)
    store.features()
    _ = store.ids


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_store_says_which_stage_makes_it(tmp_path: Path) -> None:
    refused(tmp_path / "none.zarr", "does not exist", "cache stage")


def test_foreign_stores_are_refused(store: Path, tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "v3.zarr"), zarr_format=3)
    refused(tmp_path / "v3.zarr", "not a feature store")
    zarr.create_group(str(tmp_path / "v2.zarr"), zarr_format=2)
    refused(tmp_path / "v2.zarr", "Zarr version 2")
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "no finished feature store")
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["clpdd"]["format"] = 99
    (store / "zarr.json").write_text(json.dumps(metadata))
    refused(store, "format 99", "this version reads 1", "run the cache stage again")


@pytest.mark.parametrize("name", ["features/c/4/0", "features/zarr.json", "labels/c/0", "ids/c/0", "ids/zarr.json"])
def test_missing_and_truncated_files_are_noticed_on_opening(store: Path, name: str) -> None:
    data = (store / name).read_bytes()
    (store / name).write_bytes(data[:-1])
    refused(store, name, f"{len(data) - 1} bytes instead of {len(data)}", "run the cache stage again")
    (store / name).unlink()
    refused(store, name, "missing", "run the cache stage again")


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        "features/zarr.json",
        "labels/zarr.json",
        "features/c/0/0",
        "features/c/4/0",
        "labels/c/0",
        "ids/c/0",
    ],
)
def test_flipped_bytes_are_noticed(store: Path, name: str) -> None:
    size = (store / name).stat().st_size
    # The last shard has room for chunks beyond the last row; their index entries are covered by its own checksum.
    for at in {0, size // 3, size // 2, size - 30, size - 1}:
        flip(store / name, at)
        refused(store, "delete it and run")
        flip(store / name, at)
    FeatureStore.open(store).features()
