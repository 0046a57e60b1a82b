"""DVC as killable commands: real toy projects, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clpdd.flows import dvc_commands as dvc
from clpdd.flows import processes

from .conftest import Toy, command, gone, make_toy, until

HERE = Path(__file__).parent


def quiet(line: str) -> None:
    """Nothing to say."""


def test_the_graph_is_dvcs_own_with_every_matrix_item(toy: Toy) -> None:
    stages = dvc.read_stages(toy.root)
    assert next(iter(stages)) == "index"
    assert list(stages)[-1] == "report"
    assert set(stages) == {
        "index",
        "report",
        *(f"cache@{e}" for e in "ab"),
        *(f"distill@{e}-{m}" for e in "ab" for m in ("clp", "random")),
    }
    assert stages["distill@b-clp"].upstream == ("cache@b",)
    assert stages["report"].upstream == tuple(sorted(name for name in stages if name.startswith("distill@")))
    assert stages["cache@a"].commands == ("python toy.py cache@a 0.5 data/features/a.txt data/index.txt",)
    assert stages["cache@a"].outputs == ("data/features/a.txt",)


def test_targets_select_items_groups_and_what_they_need(toy: Toy) -> None:
    stages = dvc.read_stages(toy.root)
    assert list(dvc.select(stages, [])) == list(stages)
    assert set(dvc.select(stages, ["distill@a-clp"])) == {"index", "cache@a", "distill@a-clp"}
    assert set(dvc.select(stages, ["cache"], upstream=False)) == {"cache@a", "cache@b"}
    with pytest.raises(dvc.ProjectError, match=r"unknown target distil: known are index, cache, distill"):
        dvc.select(stages, ["distil"])


def test_a_folder_without_a_project_and_a_broken_one_are_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(dvc.ProjectError, match=r"holds no dvc.yaml"):
        dvc.read_stages(tmp_path)
    (toy.root / "dvc.yaml").write_text("stages: {index: {cmx: true}}\n")
    with pytest.raises(dvc.ProjectError, match="DVC cannot read the project"):
        dvc.read_stages(toy.root)


def test_lines_arrive_one_by_one_with_the_code(tmp_path: Path) -> None:
    """The second is written only when the first has arrived."""
    script = (
        "import sys, time; from pathlib import Path; print('one'); end = time.monotonic() + 60\n"
        "while not Path('arrived').exists() and time.monotonic() < end: time.sleep(0.01)\n"
        "print('two' if Path('arrived').exists() else 'too late', file=sys.stderr); sys.exit(3)"
    )
    code, tail = processes.run([sys.executable, "-c", script], tmp_path, lambda line: (tmp_path / "arrived").touch())
    assert code == 3
    assert tail == ["one", "two"]


def test_a_command_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    script = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid()); time.sleep(99)"
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        threading.Thread(target=processes.stop_all).start()

    try:
        code, _ = processes.run([sys.executable, "-c", script], tmp_path, line, grace=0.5)
        assert code == 128 + signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.kill(int(lines[0]), 0)
        assert processes.run(["true"], tmp_path, quiet)[0] == 128 + signal.SIGTERM  # nothing new starts
    finally:
        processes.allow_starts()


def test_an_exception_in_the_owner_stops_the_command(tmp_path: Path) -> None:
    def line(text: str) -> None:
        raise KeyboardInterrupt(text)

    with pytest.raises(KeyboardInterrupt) as caught:
        processes.run(["sh", "-c", "echo $$; sleep 60"], tmp_path, line, grace=5)
    with pytest.raises(ProcessLookupError):
        os.killpg(int(str(caught.value)), 0)


def test_sigkill_of_the_owner_leaves_no_orphan_and_loses_no_step(toy: Toy) -> None:
    (toy.root / "data").mkdir()
    (toy.root / "data" / "index.txt").write_text("index\n")
    script = (
        "import sys; from pathlib import Path; from clpdd.flows import processes; root = Path(sys.argv[1]);"
        "processes.run(['python', 'toy.py', 'cache@a', '99', 'data/features/a.txt', 'data/index.txt'], root, print, 10)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(toy.root)], cwd=HERE.parent.parent)
    toy.wait_for("cache@a", 5, 30)
    stage = toy.steps("cache@a")[-1][0]
    owner.kill()
    owner.wait()

    until(lambda: gone(stage), 60, "the end of the orphaned stage")
    (saved,) = (toy.root / "data/work/cache/a").glob("*/step")
    assert int(saved.read_text()) == toy.steps("cache@a")[-1][1] + 1  # the step it was in was finished and saved


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from clpdd.flows import processes\n"
        "with processes.holding(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=HERE.parent.parent, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told: list[str] = []

    def end(by: str) -> None:
        told.append(by)
        holder.kill()

    with processes.holding(path, end):
        assert told == [f"process {holder.pid}"]
    holder.wait()


def test_unchanged_restorable_and_outdated_are_told_apart(toy: Toy) -> None:
    stages = dvc.read_stages(toy.root)
    assert dvc.changed(toy.root, stages) == set(stages)
    dvc.record(toy.root, "index", quiet, 5)
    assert dvc.probe(toy.root, "index") is dvc.Probe.UNCHANGED
    assert dvc.probe(toy.root, "cache@a") is dvc.Probe.OUTDATED
    assert "index" not in dvc.changed(toy.root, stages)
    (toy.root / "data" / "index.txt").unlink()
    assert dvc.probe(toy.root, "index") is dvc.Probe.RESTORABLE
    assert dvc.changed(toy.root, stages) == set(stages)


def test_what_a_stage_reads_now_decides_whether_it_is_in_dvcs_cache(toy: Toy) -> None:
    code = toy.root / "toy.py"
    as_it_was = code.read_text()
    dvc.record(toy.root, "index", quiet, 5)
    code.write_text(as_it_was + "# another line\n")
    assert dvc.probe(toy.root, "index") is dvc.Probe.OUTDATED
    dvc.record(toy.root, "index", quiet, 5)
    code.write_text(as_it_was)  # what DVC has recorded last is not what it has recorded of this
    assert dvc.probe(toy.root, "index") is dvc.Probe.RESTORABLE
    code.write_text(as_it_was + "# a third line\n")
    assert dvc.probe(toy.root, "index") is dvc.Probe.OUTDATED
    with pytest.raises(dvc.ProjectError, match="nowhere"):
        dvc.probe(toy.root, "nowhere")


def test_a_stage_that_looks_always_runs_and_dirties_nothing_by_itself(tmp_path: Path) -> None:
    toy = make_toy(tmp_path / "toy", looks=True)
    stages = dvc.read_stages(toy.root)
    assert [name for name, stage in stages.items() if stage.looks] == ["inputs"]
    assert next(iter(stages)) == "inputs"
    assert dvc.look(toy.root, stages["inputs"], quiet, 5)
    dvc.record(toy.root, "index", quiet, 5)
    everything = set(stages) - {"inputs"}
    assert not dvc.look(toy.root, stages["inputs"], quiet, 5)
    assert dvc.changed(toy.root, stages) == everything - {"index"}
    (toy.root / "outside.txt").write_text("as it is")
    assert dvc.look(toy.root, stages["inputs"], quiet, 5)
    assert dvc.changed(toy.root, stages) == everything
    assert dvc.changed(toy.root, dvc.select(stages, ["index"], upstream=False)) == {"index"}


def test_a_record_tells_the_stages_own_code(toy: Toy) -> None:
    toy.fault("index", "2")
    with pytest.raises(dvc.StageRefused, match="cannot be used; allowed are others"):
        dvc.record(toy.root, "index", quiet, 5)
    toy.fault("index", "once kill")
    with pytest.raises(dvc.StageInterrupted):
        dvc.record(toy.root, "index", quiet, 5)
    dvc.record(toy.root, "index", quiet, 5)


@pytest.mark.slow
def test_siblings_side_by_side_equal_a_plain_repro_even_while_dvc_is_busy(toy: Toy) -> None:
    dvc.record(toy.root, "index", quiet, 5)
    stages = dvc.read_stages(toy.root)
    toy.meet("cache@a", "cache@b")
    failures: list[BaseException] = []

    def make(name: str) -> None:
        try:
            dvc.make(toy.root, stages[name], quiet, quiet, 5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=[f"cache@{encoder}"]) for encoder in "ab"]
    # meanwhile, a person uses DVC in the same workspace
    person = subprocess.Popen(
        ["sh", "-c", "for i in 1 2 3; do python -m dvc status; done"],
        cwd=toy.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    person.wait()
    assert not failures
    both = toy.lock()
    assert toy.side_by_side("cache@a", "cache@b")
    for made in ("dvc.lock", "data/index.txt"):
        (toy.root / made).unlink()
    command("repro", "--no-run-cache", "cache", root=toy.root)
    assert toy.lock() == both


def test_an_input_written_during_the_work_is_not_recorded_as_read(toy: Toy) -> None:
    dvc.record(toy.root, "index", quiet, 5)
    stage = dvc.read_stages(toy.root)["cache@a"]
    params = toy.root / "params.yaml"

    def line(text: str) -> None:
        if "done" not in text and "seed: 0" in params.read_text():
            params.write_text(params.read_text().replace("seed: 0", "seed: 1"))

    dvc.make(toy.root, stage, line, quiet, 5)
    assert toy.lock()["cache@a"]["params"]["params.yaml"]["seed"] == 1
    made = (toy.root / "data/features/a.txt").read_text()
    command("repro", "--force", "--single-item", "cache@a", root=toy.root)
    assert (toy.root / "data/features/a.txt").read_text() == made  # what seed 1 makes


def test_a_lock_file_cut_by_a_kill_is_made_again(toy: Toy) -> None:
    dvc.record(toy.root, "index", quiet, 5)
    whole = toy.lock()
    lock = toy.root / "dvc.lock"
    lock.write_text(lock.read_text()[:60])
    stages = dvc.read_stages(toy.root)
    assert "index" in dvc.changed(toy.root, stages)
    dvc.record(toy.root, "index", quiet, 5)
    assert toy.lock() == whole
    assert len(toy.steps("index")) == 4  # nothing was done twice


def test_what_is_forgotten_is_the_stages_own_work_and_nothing_else(tmp_path: Path) -> None:
    rooms = {
        "cache@a": ["cache/a-train", "cache/a-validation", "cache/a-test"],
        "kernels@a": ["kernels/a"],
        "distill@a-clp": ["distill/a-clp"],
        "benchmark@a": ["benchmark/a-clp-1-0", "benchmark/a-lgm-1-0"],
    }
    others = ["cache/b-train", "kernels/b", "distill/a-lgm", "distill/b-clp", "benchmark/b-clp-1-0"]
    stages = [dvc.Stage(name, (), "", ()) for name in rooms]
    for forgotten in stages:
        for room in (*others, *(room for some in rooms.values() for room in some)):
            (tmp_path / room / "0123").mkdir(parents=True, exist_ok=True)
        dvc.forget(tmp_path, [forgotten])
        gone = {room for some in rooms.values() for room in some if not (tmp_path / room).exists()}
        assert gone == set(rooms[forgotten.name])
        assert all((tmp_path / room).exists() for room in others)
