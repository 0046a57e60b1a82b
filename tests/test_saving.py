"""Saving beside the steps: a copy is taken, one save at a time, never more at stake than the interval."""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import clpdd.optimise.saving as saving
from clpdd.config.runtime import RuntimeSettings
from clpdd.errors import ResourceError
from clpdd.optimise.saving import Saver
from clpdd.storage.checkpoint import Checkpoint, load_latest, save_checkpoint
from clpdd.storage.tensor_file import write_tensors


class Disk:
    """Stands between the thread and the disk: holds a save up until it is let go, and counts those under way."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Semaphore(0), threading.Semaphore(0)
        self.under_way = self.most = 0
        self.full = False

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.release()
        self.free.acquire()
        if not self.full:
            save_checkpoint(folder, checkpoint)
        self.under_way -= 1
        if self.full:
            raise ResourceError("the disk is full")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(saving, "save_checkpoint", made.write)
    yield made
    made.free.release(100)


def every(steps: int = 8, seconds: float = 1e6) -> RuntimeSettings:
    return RuntimeSettings(checkpoint_every_steps=steps, checkpoint_every_seconds=seconds)


def test_the_steps_go_on_while_a_copy_of_the_state_is_written(tmp_path: Path, disk: Disk) -> None:
    state, best = {"level.0": torch.zeros(3)}, {"best": torch.ones(2)}
    with Saver(tmp_path, 0, every()) as saver:
        saver.save(6, state, best, {"losses": [0.5]})
        disk.begun.acquire()
        state["level.0"] += 1  # the next step
        assert load_latest(tmp_path) is None
        disk.free.release()
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 6
    assert found.tensors["level.0"].tolist() == [0.0, 0.0, 0.0]
    assert found.tensors["best"].tolist() == [1.0, 1.0]


def test_a_save_begins_a_quarter_early_and_no_second_one_while_it_lasts(tmp_path: Path, disk: Disk) -> None:
    with Saver(tmp_path, 0, every(8)) as saver:
        assert [step for step in range(1, 8) if saver.due(step)] == [6, 7]
        saver.save(6, {}, {}, {})
        disk.begun.acquire()
        assert not saver.due(12)  # though it is time again
        disk.free.release(2)
        saver.wait()
        assert saver.due(12)
        saver.save(12, {}, {}, {})
    assert disk.most == 1


def test_two_saves_never_overlap(tmp_path: Path, disk: Disk) -> None:
    with Saver(tmp_path, 0, every()) as saver:
        saver.save(1, {"a": torch.zeros(1)}, {}, {})
        disk.begun.acquire()
        threading.Timer(0.2, disk.free.release, (5,)).start()
        saver.save(2, {"a": torch.ones(1)}, {}, {})  # a stop: not when it is due
    assert disk.most == 1
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.tensors["a"].item()) == (2, 1.0)


@pytest.mark.parametrize(("interval", "first"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (100, 75)])
def test_short_intervals_are_kept_to_the_step(tmp_path: Path, interval: int, first: int) -> None:
    with Saver(tmp_path, 0, every(interval)) as saver:
        assert next(step for step in range(1, 200) if saver.due(step)) == first


@pytest.mark.parametrize("interval", [1, 2, 5, 12])
def test_never_are_more_steps_at_stake_than_the_interval(tmp_path: Path, disk: Disk, interval: int) -> None:
    """A disk that takes as long as it is allowed to: it ends a save only when the steps wait for it."""
    with Saver(tmp_path, 0, every(interval)) as saver:
        for step in range(1, 30):
            if saver.due(step):
                saver.save(step, {}, {}, {})
            whole = load_latest(tmp_path)
            if step - (whole.step if whole else 0) >= interval:
                disk.free.release()
            saver.hold(step)
            whole = load_latest(tmp_path)
            assert step + 1 - (whole.step if whole else 0) <= interval
        disk.free.release(5)


def test_the_clock_makes_a_save_due_as_well(tmp_path: Path) -> None:
    with Saver(tmp_path, 0, every(1000, 0.001)) as saver:
        threading.Event().wait(0.005)
        assert saver.due(1)


def test_what_goes_wrong_with_the_writing_reaches_the_loop(tmp_path: Path, disk: Disk) -> None:
    disk.full = True
    disk.free.release(10)
    asks: list[Callable[[Saver], object]] = [lambda s: s.due(7), lambda s: s.hold(20), lambda s: s.wait()]
    asks.append(lambda s: s.save(7, {}, {}, {}))
    for ask in asks:
        saver = Saver(tmp_path, 0, every())
        saver.save(6, {}, {}, {})
        saver._thread.shutdown(wait=True)
        with pytest.raises(ResourceError, match="disk is full"):
            ask(saver)
    saver = Saver(tmp_path, 0, every())
    saver.save(6, {}, {}, {})
    with pytest.raises(ResourceError, match="disk is full"):
        saver.__exit__(None, None, None)


def test_an_error_of_the_loop_is_not_hidden_and_the_save_still_ends(tmp_path: Path, disk: Disk) -> None:
    threading.Timer(0.2, disk.free.release).start()

    def loop() -> None:
        with Saver(tmp_path, 0, every()) as saver:
            saver.save(6, {}, {}, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop()
    assert load_latest(tmp_path) is not None


def test_a_copy_takes_the_memory_of_the_one_before(tmp_path: Path) -> None:
    state = {"level.0": torch.zeros(1000), "level.1": torch.zeros(10)}
    with Saver(tmp_path, 0, every()) as saver:
        saver.save(1, state, {}, {})
        first = saver._copies["level.0"].data_ptr()
        saver.save(2, state | {"level.1": torch.zeros(20)}, {}, {})
        assert saver._copies["level.0"].data_ptr() == first
        assert saver._copies["level.1"].shape == (20,)


@pytest.mark.parametrize("shape", [(), (0, 4), (5, 3), (4, 3)])
def test_what_comes_through_a_block_is_what_was_there(shape: tuple[int, ...]) -> None:
    source = torch.rand(shape)
    copy = saving._copy_through(source, torch.empty(shape), torch.empty(4))
    assert torch.equal(copy, source)


def tensors() -> dict[str, Any]:
    kinds = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64, torch.float16)
    made = {f"tensor.{kind}": torch.arange(7).to(kind) for kind in kinds}
    return made | {'ärger "quoted"': torch.tensor(3.5), "none": torch.zeros(0, 4)}


def test_the_stream_is_the_file_that_the_library_writes(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "a.safetensors", tensors())
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data == save(tensors())
    assert digest == hashlib.sha256(data).hexdigest()


def test_writing_takes_no_second_copy(tmp_path: Path) -> None:
    big = {"level": torch.zeros(8 * 2**20)}  # 32 MiB, by torch: not counted below
    tracemalloc.start()
    save_checkpoint(tmp_path, Checkpoint(1, big, {}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20
