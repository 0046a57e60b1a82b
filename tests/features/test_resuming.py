"""An encoding that was broken off goes on, and ends in the same bytes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clpdd.config.cache import CacheSettings
from clpdd.encoders.encoder import Encoder
from clpdd.flows.dvc_commands import Stage, forget
from clpdd.stages.cache import cache_features
from clpdd.storage.files import sha256_tree
from tests.runs import run_in

from .conftest import ROWS, SMALL, counted, flip, make_encoder


def test_an_interrupted_run_goes_on_at_the_first_unfinished_shard(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    with counted(encoder, fail_at=7), pytest.raises(KeyboardInterrupt):  # batches of 12, 12, 8 per shard of 32
        cache_features(index, encoder, SMALL, target, run_in(work))
    assert not target.exists()
    with counted(encoder) as sizes, caplog.at_level(logging.INFO):
        cache_features(index, encoder, SMALL, target, run_in(work))
    assert "2 of 5 shards are finished already" in caplog.text
    assert sum(sizes) == ROWS - 2 * 32
    (clock,) = (tmp_path / "clocks").iterdir()
    reading = json.loads(clock.read_text())
    assert reading["attempts"] == 2
    assert reading["images_per_second"] > 0
    assert sha256_tree(target) == sha256_tree(finished)


def test_a_finished_store_is_published_again_without_encoding(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    cache_features(index, encoder, SMALL, target, run_in(work))
    shutil.rmtree(target)
    with counted(encoder) as sizes:
        cache_features(index, encoder, SMALL, target, run_in(work))
    assert sizes == []
    assert sha256_tree(target) == sha256_tree(finished)


def test_a_shard_altered_since_is_not_trusted(
    index: Path, encoder: Encoder, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, work = tmp_path / "train.zarr", tmp_path / "work"
    with counted(encoder, fail_at=10), pytest.raises(KeyboardInterrupt):
        cache_features(index, encoder, SMALL, target, run_in(work))
    (shard,) = work.rglob("features/c/1/0")
    flip(shard, 1000)
    (shard.parent / "0.0123abcd.partial").write_bytes(b"what zarr leaves behind when it is killed")
    with counted(encoder) as sizes:
        cache_features(index, encoder, SMALL, target, run_in(work))
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
        cache_features(index, encoder, SMALL, target, run_in(work))
    (file,) = work.rglob("features/zarr.json" if damage == "metadata" else "shards.json")
    file.write_text("[1, 2]" if damage == "list" else file.read_text()[:-20])
    cache_features(index, encoder, SMALL, target, run_in(work))
    assert sha256_tree(target) == sha256_tree(finished)


def test_other_settings_or_encoders_have_work_folders_of_their_own(index: Path, weights: Path, tmp_path: Path) -> None:
    def run(encoder: Encoder, settings: CacheSettings, workers: int = 0) -> None:
        how = run_in(tmp_path / "work", workers=workers)
        with counted(encoder, fail_at=4), pytest.raises(KeyboardInterrupt):
            cache_features(index, encoder, settings, tmp_path / "train.zarr", how)

    run(make_encoder(weights), SMALL)
    run(make_encoder(weights), SMALL, workers=1)  # cannot change a byte
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
            cache_features(index, encoder, SMALL, tmp_path / f"{name}.zarr", run_in(work))
    forget(work, [Stage("cache@one", (), str(tmp_path), ())])
    assert {found.parents[1].name for found in work.rglob("fingerprint.json")} == {"one-more-train"}


KILLED = """
import sys
from pathlib import Path

if __name__ == "__main__":
    import torch
    from clpdd.config.cache import CacheSettings
    from clpdd.config.runtime import RuntimeSettings
    from clpdd.encoders.loading import load_encoder
    from clpdd.stages.cache import cache_features
    from clpdd.stages.project import Run

    index, weights, target, work = map(Path, sys.argv[1:5])
    encoder = load_encoder("clpdd_resnet14", weights=weights, image_size=64, device="cpu")
    torch.set_num_threads(1)
    run = Run(work=work, runtime=RuntimeSettings(workers=2))
    cache_features(index, encoder, CacheSettings.model_validate_json(sys.argv[5]), target, run)
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
    settings = CacheSettings(dtype="float32", batch_size=6, chunk_rows=5, shard_rows=10)
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
        cache_features(index, encoder, settings, target, run_in(work))
    assert 0 < sum(sizes) == ROWS - 10 * done
    cache_features(index, encoder, settings, tmp_path / "whole.zarr", run_in(tmp_path / "other"))
    assert sha256_tree(target) == sha256_tree(tmp_path / "whole.zarr")
