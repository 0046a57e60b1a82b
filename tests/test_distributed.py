"""Several processes as one run: what the launcher says, collectives over gloo, and the cache stage over ranks."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clpdd.datasets.build import index_arrays
from clpdd.distributed.group import ALONE, Ranks, device_number
from clpdd.distributed.launch import launched, neighbours
from clpdd.distributed.work import await_ranks, hold_as_rank, shared
from clpdd.errors import BusyError, ResourceError, SettingsError
from clpdd.stages.cache import run_cache
from clpdd.stages.project import open_project
from clpdd.storage.files import sha256_tree
from clpdd.storage.work import WorkFolder

from .ranks import PATIENCE, Launcher

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
ENCODER = "clpdd_resnet14"


def test_a_process_started_alone_is_a_group_of_one() -> None:
    assert Ranks(*launched({"LOCAL_RANK": "3", "MASTER_PORT": "1"})) == ALONE
    assert ALONE.is_main
    assert ALONE.all_gather_object(4) == [4]
    assert ALONE.broadcast_object(5) == 5
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]


def test_what_the_launcher_says_is_taken() -> None:
    assert Ranks(*launched(COMPLETE)) == Ranks(1, 2, 1)


@pytest.mark.parametrize("name", sorted(COMPLETE))
def test_half_an_environment_is_refused_naming_what_is_missing(name: str) -> None:
    with pytest.raises(SettingsError, match=f"but {name} of .* not set"):
        launched({key: value for key, value in COMPLETE.items() if key != name})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": "2"}, "RANK=2.*WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'.*whole number"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(change: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        launched(COMPLETE | change)


@pytest.mark.parametrize("items", [0, 1, 5, 12])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_shares_and_spans_are_even_and_leave_nothing_out(items: int, size: int) -> None:
    shares = [Ranks(rank, size).share(list(range(items))) for rank in range(size)]
    spans = [Ranks(rank, size).span(items) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert [item for span in spans for item in span] == list(range(items))
    for parts in (shares, spans):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert spans == [Ranks(0, size).span(items, rank) for rank in range(size)]


def test_a_rank_takes_the_device_of_its_number_or_the_one_it_is_shown() -> None:
    assert [device_number(local, 4) for local in range(4)] == [0, 1, 2, 3]
    assert device_number(3, 1) == 0
    for local, found in ((2, 2), (0, 0)):
        with pytest.raises(ResourceError, match=f"torch sees {found}"):
            device_number(local, found)


def test_memory_is_divided_by_machine_and_processors_among_those_who_may_use_them() -> None:
    together, bound = ["a", [0, 1]], ["a", [2]]
    assert [neighbours([together, bound, together, ["b", [0, 1]]], rank) for rank in range(4)] == [
        (3, 2),
        (3, 1),
        (3, 2),
        (1, 1),
    ]


def test_a_rank_that_outlived_its_run_is_waited_for(tmp_path: Path) -> None:
    named = rf"rank of an earlier run.*process {os.getpid()}@\S+ {os.getpid()}@"
    for _ in range(2):
        with hold_as_rank(tmp_path), hold_as_rank(tmp_path), pytest.raises(BusyError, match=named):
            await_ranks(tmp_path, wait=0)
        await_ranks(tmp_path, wait=0)
    with pytest.raises(ResourceError, match="all ranks share"), hold_as_rank(tmp_path / "elsewhere"):
        pass


def test_one_process_waits_too_for_a_rank_that_outlived_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clpdd.distributed.work._PATIENCE", 0.0)
    work = WorkFolder(tmp_path, "cache", "encoder/train", {})
    with shared(work, ALONE):
        assert not (work.path / "lock").exists()  # nothing to wait for, nothing left behind
    with hold_as_rank(work.path), pytest.raises(BusyError, match="rank of an earlier run"), shared(work, ALONE):
        pass
    with shared(work, ALONE):
        pass


# -- two processes --------------------------------------------------------------------------------------------------


COLLECTIVES = """
import json
import torch
import clpdd.distributed.group
from clpdd.distributed.launch import connect
from clpdd.errors import ResourceError, SettingsError

clpdd.distributed.group._PIECE = 64  # several pieces of these rows
everything = torch.arange(5 * 2 * 3).view(5, 2, 3)
with connect() as ranks:
    own = everything[list(ranks.span(5))]
    assert torch.equal(ranks.all_gather(own, 5), everything)
    assert torch.equal(ranks.all_gather(own.transpose(0, 1), 5, axis=1), everything.transpose(0, 1))
    assert torch.equal(ranks.gather(own, 5), everything if ranks.is_main else own)
    assert torch.equal(ranks.gather(own[:0], 0), own[:0])
    assert torch.equal(ranks.scatter(everything if ranks.is_main else everything.to("meta")), own)
    assert torch.equal(ranks.broadcast(torch.tensor(7.5 - ranks.rank)), torch.tensor(7.5))
    total, ones = ranks.all_reduce(torch.tensor([[1.0 + ranks.rank, 2.0]]), torch.ones(()))
    try:
        ranks.agree("colours", ranks.rank)
        refused = ""
    except SettingsError as error:
        refused = str(error)
    ranks.agree("colours", ["red", None, 1.5])
    for cards in (None, "one"), ("one", "two"), (None, None):
        ranks.check_distinct_devices(cards[ranks.rank])
    try:
        ranks.check_distinct_devices("one")
        raise SystemExit("two ranks share a device")
    except ResourceError as error:
        shared = str(error)
    values = [total.tolist(), ones.item(), ranks.broadcast_object("\N{SNOWMAN}" * (1 + ranks.rank)), refused]
    values += [ranks.all_gather_object({"rank": "x" * ranks.rank}), ranks.all_reduce_max(ranks.rank, -ranks.rank)]
    values += [[ranks.local_size, ranks.sharing_cores], shared]
    print(json.dumps(values))
"""


def test_every_rank_gets_what_the_collectives_promise(launcher: Launcher) -> None:
    for rank in launcher.ranks(*[["-c", COLLECTIVES]] * 2):
        out, err = rank.communicate(timeout=PATIENCE)
        assert rank.returncode == 0, err
        said = json.loads(out.splitlines()[-1])  # before it gloo says whom it has met
        total, ones, told, refused, gathered, highest, sharers, shared = said
        assert (total, ones) == ([[3.0, 4.0]], 2.0)
        assert (told, gathered, highest) == ("\N{SNOWMAN}", [{"rank": ""}, {"rank": "x"}], [1, 0])
        assert sharers == [2, 2]
        assert shared.startswith("ranks [0, 1] would share CUDA devices")
        assert refused.startswith("colours of ranks [1] differ")


MEETING = """
import sys
import torch.distributed as dist
from clpdd.cli.main import main

meet = dist.rendezvous

def told(*given, **named):
    print("meeting", flush=True)
    return meet(*given, **named)

dist.rendezvous = told
sys.exit(main(sys.argv[1:]))
"""


def test_ranks_that_wait_for_another_can_be_stopped(launcher: Launcher) -> None:
    waits = ["-c", MEETING, "cache", "--encoder", ENCODER]
    waiting = launcher.ranks(waits, waits, ["-c", ""])[:2]
    for rank in waiting:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "meeting\n"
    time.sleep(0.5)  # into the wait itself, where Python runs no handler
    ends = ((waiting[1], signal.SIGINT, 130), (waiting[0], signal.SIGTERM, 75))  # last the one that others meet at
    for rank, number, code in ends:
        rank.send_signal(number)
        said = rank.communicate(timeout=PATIENCE)[1]
        assert rank.returncode == code, said
        assert f"stopped by {number.name}; finished work is kept" in said


@pytest.fixture
def project(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    sizes = {"train": 40, "validation": 7, "test": 4}
    splits = {name: (rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n) % 2) for name, n in sizes.items()}
    index_arrays(splits, ["a", "b"], tmp_path / "data" / "index")
    text = "cache: {batch_size: 4, chunk_rows: 4, shard_rows: 4}\nruntime: {device: cpu, threads: 1, workers: 0}\n"
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path


def command(project: Path) -> list[str]:
    places = ["--params", str(project / "params.yaml"), "--data", str(project / "data")]
    return ["-m", "clpdd", *places, "cache", "--encoder", ENCODER]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


HELD_AFTER_TWO_SHARDS = """
import sys
from clpdd.cli.main import main
from clpdd.features.proof import Proven

add = Proven.add

def add_and_hold(self, name):
    add(self, name)
    if len(self.hashes) == 2:
        sys.stdin.read()  # until killed, or until the test has ended

Proven.add = add_and_hold
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_rank_is_noticed_and_the_group_resumes_to_the_bytes_of_one_process(
    project: Path, launcher: Launcher
) -> None:
    work = project / "data" / "work"

    def recorded(name: str) -> dict[str, str]:
        return {k: v for file in work.rglob(name) for k, v in json.loads(file.read_text()).items()}

    first, second = launcher.ranks(command(project), ["-c", HELD_AFTER_TWO_SHARDS, *command(project)[2:]])
    assert eventually(lambda: len(recorded("shards-1.json")) == 2 and len(recorded("shards.json")) >= 3)
    second.kill()
    said = first.communicate(timeout=PATIENCE)[1]
    second.communicate()
    assert first.returncode == ResourceError.exit_code, said
    assert "lost another rank, which was killed or failed" in said
    done = recorded("shards*.json")
    (store,) = work.rglob("features.zarr")
    before = {name: (store / name).stat() for name in done}

    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command(project)]
    finished = launcher.start(run)
    said = finished.communicate(timeout=PATIENCE)[1]
    assert finished.returncode == 0, said
    assert f"{len(done) - 1} of 10 shards are finished already" in said  # less the array's metadata
    for name, stat in before.items():
        after = (store / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), f"{name} was made twice"
    assert not list(work.rglob("shards*.json"))

    (project / "alone").mkdir()
    (project / "data" / "index").rename(project / "alone" / "index")
    threads = torch.get_num_threads()
    try:
        run_cache(open_project(project / "params.yaml", project / "alone"), ENCODER)
    finally:
        torch.set_num_threads(threads)
    for split in ("train", "validation", "test"):
        place = f"features/{ENCODER}/{split}.zarr"
        assert sha256_tree(project / "data" / place) == sha256_tree(project / "alone" / place)


def test_stages_of_one_process_refuse_a_group(project: Path, launcher: Launcher) -> None:
    out = launcher.start(["kernels" if one == "cache" else one for one in command(project)], COMPLETE)
    said = out.communicate(timeout=PATIENCE)[1]
    assert out.returncode == SettingsError.exit_code
    assert "runs in one process" in said
