"""One pool of decoding processes for several splits: started once, and nothing of one job gets into the next."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clpdd.datasets.build import index_arrays
from clpdd.datasets.index import Index
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.preprocessing import Preprocess
from clpdd.errors import ArtifactError
from clpdd.features import batches as batches_module
from clpdd.features.decoders import Decoders
from clpdd.features.decoding import Batch, decode_rows
from clpdd.stages.cache import cache_features, run_cache
from clpdd.stages.project import Project, open_project
from clpdd.storage.files import sha256_tree
from tests.runs import run_in

from .conftest import SMALL

PREPROCESS = Preprocess(resize=32, crop=32, interpolation="bicubic")
BATCHES = [(start, start + 10) for start in range(0, 150, 10)]
SPLITS = ("train", "validation", "test")


def pids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def decoded(decoders: Decoders, index: Path, batches: list[Batch], workers: int = 2) -> np.ndarray:
    with decoders.decode(index, PREPROCESS, batches, workers) as arriving:
        return np.concatenate(list(arriving))


def expected(index: Path, batches: list[Batch]) -> np.ndarray:
    opened = Index.open(index)
    return np.concatenate([decode_rows(opened, PREPROCESS, start, stop) for start, stop in batches])


def test_jobs_one_after_another_are_done_by_the_same_processes(index: Path) -> None:
    other = index.with_name("test.parquet")
    with Decoders() as decoders:
        np.testing.assert_array_equal(decoded(decoders, index, BATCHES), expected(index, BATCHES))
        first = pids()
        np.testing.assert_array_equal(decoded(decoders, other, [(0, 2), (2, 3)]), expected(other, [(0, 2), (2, 3)]))
        np.testing.assert_array_equal(decoded(decoders, other, [(0, 3)]), expected(other, [(0, 3)]))
        assert pids() == first
        assert len(first) == len(decoders) == 2
        np.testing.assert_array_equal(decoded(decoders, index, BATCHES, 3), expected(index, BATCHES))
        assert first < pids()
        assert len(decoders) == 3
    assert not pids()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_batches_that_nobody_took_do_not_come_in_the_next_job(index: Path, taken: int) -> None:
    with Decoders() as decoders:
        with decoders.decode(index, PREPROCESS, BATCHES * 100, 2) as arriving:
            for _ in range(taken):
                next(arriving)
        assert not pids()
        np.testing.assert_array_equal(decoded(decoders, index, BATCHES[3:7]), expected(index, BATCHES[3:7]))


def test_after_a_job_that_failed_the_next_one_is_right(index: Path, tmp_path: Path) -> None:
    with Decoders() as decoders:
        with pytest.raises(ArtifactError, match=r"gone\.parquet"):
            decoded(decoders, tmp_path / "gone.parquet", BATCHES)
        assert not pids()
        np.testing.assert_array_equal(decoded(decoders, index, BATCHES), expected(index, BATCHES))


def test_workers_killed_between_jobs_are_replaced(index: Path) -> None:
    with Decoders() as decoders:
        expected = decoded(decoders, index, BATCHES)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        found = decoded(decoders, index, BATCHES)
        np.testing.assert_array_equal(found, expected)
    assert not pids()


def test_two_jobs_at_once_are_refused(index: Path) -> None:
    with Decoders() as decoders, decoders.decode(index, PREPROCESS, BATCHES, 1) as arriving:
        with pytest.raises(RuntimeError, match="another job"):
            decoded(decoders, index, BATCHES)
        np.testing.assert_array_equal(np.concatenate(list(arriving)), expected(index, BATCHES))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_workers_hold_no_torch(index: Path) -> None:
    with Decoders() as decoders:
        decoded(decoders, index, BATCHES)
        for pid in pids():
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "numpy" in maps
            assert "torch" not in maps


WAITING = """
import multiprocessing, sys, time
from pathlib import Path
from clpdd.encoders.preprocessing import Preprocess
from clpdd.features.decoders import Decoders
with Decoders() as decoders:
    with decoders.decode(Path(sys.argv[1]), Preprocess(32, 32, "bicubic"), [(0, 9), (9, 20)], 2) as arriving:
        list(arriving)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_that_wait_for_a_job_end_with_a_killed_parent(index: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, str(index)], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(running, workers))
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- a run of the stage ------------------------------------------------------------------------------------------------


def project(folder: Path, workers: str) -> Project:
    rng = np.random.default_rng(3)
    sizes = {"train": 40, "validation": 14, "test": 11}
    splits = {name: (rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 2) for name, n in sizes.items()}
    index_arrays(splits, ["a", "b"], folder / "data" / "index")
    (folder / "params.yaml").write_text(
        f"cache: {{batch_size: 4, chunk_rows: 4, shard_rows: 16}}\nruntime: {{device: cpu, workers: {workers}}}\n"
    )
    return open_project(folder / "params.yaml", folder / "data")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the processes that are started."""
    names: list[str] = []
    process = multiprocessing.get_context("spawn").Process
    start: Callable[..., None] = process.start

    def counted_start(self: multiprocessing.Process) -> None:
        names.append(self.name)
        start(self)

    monkeypatch.setattr(process, "start", counted_start)
    return names


def test_the_splits_of_a_run_share_their_decoders(tmp_path: Path, started: list[str]) -> None:
    shared = project(tmp_path / "shared", "2")
    run_cache(shared, "clpdd_resnet14")
    assert started == ["decode-0", "decode-1"]
    assert not pids()
    apart = project(tmp_path / "apart", "0")
    for split in SPLITS:
        target, index = apart.layout.features("clpdd_resnet14", split), apart.layout.index(split)
        cache_features(index, apart.encoder("clpdd_resnet14"), apart.settings.cache, target, apart.run)
        assert sha256_tree(target) == sha256_tree(shared.layout.features("clpdd_resnet14", split))
    assert len(started) == 2


@pytest.mark.parametrize(("resumed", "measured"), [((), ["train", "train"]), (("train",), ["validation"] * 2)])
def test_what_batches_take_is_measured_once_in_a_run(
    resumed: tuple[str, ...], measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[str]
) -> None:
    tried = []

    def decode(index: Index, *rest: object) -> np.ndarray:
        tried.append(index.split)
        return decode_rows(index, *rest)  # type: ignore[arg-type]

    own = project(tmp_path, "null")
    for split in resumed:
        target, index = own.layout.features("clpdd_resnet14", split), own.layout.index(split)
        cache_features(index, own.encoder("clpdd_resnet14"), own.settings.cache, target, own.run)
    monkeypatch.setattr(batches_module, "decode_rows", decode)
    run_cache(own, "clpdd_resnet14")
    assert tried == measured
    assert started == []  # a second or less of decoding


def test_decoders_of_the_caller_stay_for_the_next_split(encoder: Encoder, index: Path, tmp_path: Path) -> None:
    with Decoders() as decoders:
        run = run_in(tmp_path / "work", workers=1)
        cache_features(index, encoder, SMALL, tmp_path / "a.zarr", run, decoders=decoders)
        first = pids()
        assert len(first) == 1
        cache_features(index.with_name("test.parquet"), encoder, SMALL, tmp_path / "b.zarr", run, decoders=decoders)
        assert pids() == first
    assert not pids()
