"""The machine refuses: disk full, read-only, gone, out of memory. One paragraph, a documented code, nothing lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clpdd import cli, stages
from clpdd.cli import main
from clpdd.encoders import Encoder
from clpdd.files import sha256_tree, sweep, write_bytes
from clpdd.work import exclusive

NAME = "clpdd_resnet14"
STEPS = ("index", "cache", "kernels", "distill", "evaluate", "report")
OUTPUTS = {
    "index": "index",
    "cache": f"features/{NAME}",
    "kernels": f"kernels/{NAME}",
    "distill": f"distilled/{NAME}/clp",
    "evaluate": "results/results.parquet",
    "report": "results/report.json",
}
SETTINGS: dict[str, Any] = {
    "dataset": {"max_per_class": {"train": 12, "validation": 6, "test": 6}},
    "cache": {"batch_size": 16, "chunk_rows": 8, "shard_rows": 24, "workers": 0},
    "methods": ["clp"],
    "distill": {
        "steps": 8,
        "augmentations": 1,
        "extend_every": 2,
        "validate_every": 4,
        "preview_every": 2,
        "checkpoint_every_steps": 2,
    },
    "evaluate": {"seeds": 1, "random_draws": 1, "epochs": 5, "views": 2},
    "runtime": {"device": "cpu", "threads": 1},
}


def command(step: str) -> list[str]:
    extra = {"cache": ["--encoder", NAME], "kernels": ["--encoder", NAME]}
    return [step, *(extra | {"distill": ["--encoder", NAME, "--method", "clp"]}).get(step, [])]


@dataclass
class Place:
    """A project folder. ``run`` is the command in this process, ``spawn`` in one of its own."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def options(self) -> list[str]:
        return ["--params", str(self.folder / "params.yaml"), "--data", str(self.data)]

    def run(self, step: str) -> int:
        return main([*self.options, *command(step)])

    def spawn(self, step: str, **options: Any) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "clpdd.cli", *self.options, *command(step)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, **options)

    def output(self, step: str) -> str:
        return sha256_tree(self.data / OUTPUTS[step])

    def forget(self, step: str) -> None:
        """As if neither this step nor a later one had run."""
        for later in STEPS[STEPS.index(step) :]:
            path = self.data / OUTPUTS[later]
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            shutil.rmtree(self.data / "work" / later, ignore_errors=True)


@pytest.fixture(autouse=True)
def _same_signals() -> Iterator[None]:
    """``main`` installs handlers, as a command should and a test should not."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The whole pipeline, run once without trouble."""
    place = Place(tmp_path_factory.mktemp("finished"))
    (place.folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    for step in STEPS:
        assert place.run(step) == 0
    return place


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Place:
    """A copy of it."""
    shutil.copytree(finished.folder, tmp_path / "place")
    return Place(tmp_path / "place")


def clear(said: str, code: int, expected: str) -> None:
    """``said`` on stderr is a message for people, ``code`` the documented one."""
    assert "Traceback" not in said
    assert expected in said
    assert code in range(1, 8)
    told = [line for line in said.splitlines() if line.startswith("clpdd ")]
    assert len(told) == 1
    assert len(told[0]) < 700


# -- disk --------------------------------------------------------------------------------------------------------------


class Disk:
    """A file system in memory that can be filled and made read-only, mounted over a project's data."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def mount(self, *options: str) -> None:
        line = ["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(self.target)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    def fill(self, left: int) -> None:
        free = os.statvfs(self.target)
        (self.target / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.target)], check=False, capture_output=True)


def on_a_disk(place: Place, size: str = "64m") -> Disk:
    """Move the data of ``place`` to a disk of its own."""
    disk = Disk(place.data)
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    aside = place.folder / "aside"
    place.data.rename(aside)
    place.data.mkdir()
    disk.mount(f"size={size}")
    shutil.copytree(aside, place.data, dirs_exist_ok=True)
    return disk


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 40_960])
@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk(place: Place, finished: Place, step: str, left: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Too full to begin, or full in the middle: told so, and the same command goes on once there is room."""
    place.forget(step)
    with on_a_disk(place) as disk:
        disk.fill(left)
        code = place.run(step)
        said = capfd.readouterr().err
        if code == 0:
            assert left  # little is written here; it had room
        else:
            clear(said, code, "the disk is full: free some space and run the same command again")
            assert code == 5
        for earlier in STEPS[: STEPS.index(step)]:
            assert place.output(earlier) == finished.output(earlier)
        (place.data / "filler").unlink()
        assert place.run(step) == 0
        assert place.output(step) == finished.output(step)
        assert not list(place.data.rglob(".clpdd-tmp-*"))


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    place: Place,
    finished: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from clpdd.methods.clp import ClosedFormProbe

    original = ClosedFormProbe.loss
    place.forget("distill")
    with on_a_disk(place) as disk:

        def loss(self: ClosedFormProbe, Z: torch.Tensor, at: int) -> torch.Tensor:
            if at == 5:
                disk.fill(0)
            return original(self, Z, at)

        with monkeypatch.context() as patch:
            patch.setattr(ClosedFormProbe, "loss", loss)
            code = place.run("distill")
        clear(capfd.readouterr().err, code, "the disk is full")
        assert [p.name for p in place.data.glob("work/distill/*/*/checkpoints/*4.json")] == ["step-000000004.json"]
        (place.data / "filler").unlink()
        with caplog.at_level("INFO", "clpdd"):
            assert place.run("distill") == 0
        assert "continuing at step 4 of 8" in caplog.text
        assert place.output("distill") == finished.output("distill")


def test_a_limit_on_the_size_of_files(place: Place, finished: Place) -> None:
    """In a process of its own, without any rights."""
    place.forget("distill")
    limited = place.spawn("distill", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2))
    clear(limited.stderr, limited.returncode, "larger than the file system or a limit")
    assert limited.returncode == 5
    assert not (place.data / OUTPUTS["distill"]).exists()
    again = place.spawn("distill")
    assert again.returncode == 0, again.stderr
    assert place.output("distill") == finished.output("distill")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_read_only_folder(place: Place, finished: Place, step: str, capfd: pytest.CaptureFixture[str]) -> None:
    place.forget(step)
    with on_a_disk(place) as disk:
        disk.mount("remount", "ro")
        code = place.run(step)
        clear(capfd.readouterr().err, code, "the file system is read-only: choose a writable folder")
        assert code == 5
        disk.mount("remount", "rw")
        assert place.run(step) == 0
        assert place.output(step) == finished.output(step)


@pytest.mark.parametrize("step", STEPS)
def test_a_file_stands_where_the_data_folder_should(
    finished: Place, tmp_path: Path, step: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copyfile(finished.folder / "params.yaml", tmp_path / "params.yaml")
    (tmp_path / "data").write_text("not a folder")
    code = Place(tmp_path).run(step)
    said = capfd.readouterr().err
    clear(said, code, "data")
    assert code in {4, 5}


# -- files that vanish or rot ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "step", "remedy"),
    [
        ("index/train.parquet", "cache", "index"),
        (f"features/{NAME}/train.zarr", "kernels", "run the cache stage"),
        (f"features/{NAME}/train.zarr/features/c/1/0", "kernels", "run the cache stage"),
        (f"features/{NAME}/validation.zarr", "distill", "run the cache stage"),
        (f"kernels/{NAME}/kernels.json", "distill", "run the stage that makes it"),
        (f"kernels/{NAME}/moments.safetensors", "distill", "run the kernels stage"),
        (f"distilled/{NAME}/clp", "evaluate", "does not exist"),
        (f"distilled/{NAME}/clp/data.parquet", "evaluate", "data.parquet"),
        (f"features/{NAME}/test.zarr", "evaluate", "run the cache stage"),
        ("results/results.parquet", "report", "results.parquet"),
        ("results/details.json", "report", "details.json"),
    ],
)
def test_a_file_that_vanished_between_stages(
    place: Place, finished: Place, gone: str, step: str, remedy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = place.data / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(place.data / "work" / step, ignore_errors=True)
    code = place.run(step)
    clear(capfd.readouterr().err, code, remedy)
    assert code == 4
    source = finished.data / gone
    shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
    assert place.run(step) == 0
    assert place.output(step) == finished.output(step)


def killed_in_the_middle(place: Place, monkeypatch: pytest.MonkeyPatch, step: int) -> Path:
    """A distillation that breaks off at ``step``; its private folder."""
    from clpdd.methods.clp import ClosedFormProbe

    class Killed(BaseException):
        pass

    original = ClosedFormProbe.loss

    def loss(self: ClosedFormProbe, Z: torch.Tensor, at: int) -> torch.Tensor:
        if at == step:
            raise Killed
        return original(self, Z, at)

    place.forget("distill")
    with monkeypatch.context() as patch:
        patch.setattr(ClosedFormProbe, "loss", loss)
        with pytest.raises(Killed):
            place.run("distill")
    (room,) = (path.parent for path in place.data.glob("work/distill/*/*/fingerprint.json"))
    return room


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("frames/000000002.png", "starting again at step 0"),
        ("checkpoints/step-000000006.json", "falling back"),
        ("checkpoints/step-000000006.safetensors", "falling back"),
        ("clock.json", "continuing at step 6"),
        ("fingerprint.json", "continuing at step 6"),
    ],
)
@pytest.mark.parametrize("way", ["flip", "cut", "empty", "gone"])
def test_rot_in_partial_work_is_noticed_and_costs_time_alone(
    place: Place,
    finished: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    file: str,
    words: str,
    way: str,
) -> None:
    room = killed_in_the_middle(place, monkeypatch, 7)
    path = room / file
    data = bytearray(path.read_bytes())
    path.unlink()
    if way != "gone":
        data[len(data) // 2] ^= 4
        path.write_bytes({"flip": data, "cut": data[: len(data) // 2], "empty": bytearray()}[way])
    with caplog.at_level("INFO", "clpdd"):
        assert place.run("distill") == 0
    if way != "gone" or not file.endswith("json"):
        assert words in caplog.text
    assert place.output("distill") == finished.output("distill")


def test_leftovers_of_a_killed_writer_are_never_published(
    place: Place, finished: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = killed_in_the_middle(place, monkeypatch, 3)
    for folder in ("out/set", "out/set/images/0", "frames", "checkpoints"):
        (room / folder).mkdir(parents=True, exist_ok=True)
        (room / folder / f".clpdd-tmp-{os.getpid()}-data.parquet").write_bytes(b"half")
    assert place.run("distill") == 0
    assert place.output("distill") == finished.output("distill")
    assert not list(place.data.rglob(".clpdd-tmp-*"))


def test_sweeping_removes_what_dead_processes_left_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".clpdd-tmp-{dead.pid}-a.json", f".clpdd-tmp-{os.getppid()}-b.json", ".clpdd-tmp-mine", "c.json"]
    for name in names:
        (tmp_path / name).write_text("half")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])
    (tmp_path / names[0]).mkdir()
    (tmp_path / names[0] / "file").write_text("half")
    write_bytes(tmp_path / "c.json", b"whole")  # the first write to a folder sweeps it
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[1:])


# -- memory ------------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore about it"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    lambda: MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize(
    ("step", "setting"),
    [
        ("cache", "lower cache.batch_size (now 16)"),
        ("distill", "lower distill.encoder_batch (now "),
        ("evaluate", "lower evaluate.encoder_batch (now 256)"),
    ],
)
def test_exhausted_memory_names_the_setting_that_lowers_it(
    place: Place,
    finished: Place,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    step: str,
    setting: str,
    error: Callable[[], BaseException],
) -> None:
    place.forget(step)
    forward, calls = Encoder.forward, 0  # one image alone is the trial when an encoder is loaded

    def exhausted(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += len(images) > 1
        if calls > (0 if step == "evaluate" else 3):
            raise error()
        return forward(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "forward", exhausted)
        code = place.run(step)
    clear(capfd.readouterr().err, code, setting)
    assert code == 5
    assert place.run(step) == 0
    assert place.output(step) == finished.output(step)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is on the address space, known from /proc")
def test_memory_that_really_runs_out(place: Place) -> None:
    """A limit on the address space, a little above what is taken after the imports, and images that need more."""
    values = SETTINGS | {"distill": SETTINGS["distill"] | {"image_size": 2048, "parameterisation": "pixels"}}
    (place.folder / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    script = textwrap.dedent(f"""
        import resource, sys, torch
        torch.set_num_threads(1)
        import clpdd.stages, clpdd.distill
        from clpdd.cli import main
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 700 * 2**20,) * 2)
        sys.exit(main({[*place.options, *command("distill")]!r}))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    clear(done.stderr, done.returncode, "memory ran out")
    assert done.returncode == 5


# -- the command -------------------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(project: object, encoder: str) -> None:
        try:
            raise error
        except OSError as inner:
            if inner.errno == errno.EDQUOT:
                raise RuntimeError("a library speaks") from inner
            raise

    monkeypatch.setattr(stages, "kernels", fail)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 5, "the disk is full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), 5, "the disk quota is used up"),
        (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 5, "permission denied: make the folder writable"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.bin"), 5, "no such file or directory (x.bin)"),
        (OSError(errno.EIO, "Input/output error"), 5, "the disk reports an input/output error"),
        (MemoryError(), 5, "memory ran out: lower the stage's batch sizes"),
        (RuntimeError("can't start new thread"), 5, "memory ran out"),
        (KeyboardInterrupt(), 130, "interrupted; finished work is kept"),
    ],
)
def test_what_no_stage_has_explained_is_explained_by_the_command(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    failing(monkeypatch, error)
    assert place.run("kernels") == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_a_defect_keeps_its_traceback(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        place.run("kernels")


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_signal_is_not_swallowed_by_a_library(place: Place, name: str, code: int) -> None:
    script = textwrap.dedent(f"""
        import os, signal, sys
        from clpdd import cli, stages
        def stubborn(project, encoder):
            try:
                os.kill(os.getpid(), signal.{name})
            except BaseException:
                pass
            print("the signal did not arrive")
        stages.kernels = stubborn
        sys.exit(cli.main({[*place.options, *command("kernels")]!r}))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stderr == f"clpdd: stopped by {name}; finished work is kept, run the same command to go on\n"
    assert done.stdout == ""


@pytest.mark.parametrize("step", ["index", "evaluate", "report"])
def test_a_second_run_of_a_whole_stage_is_told_so(
    place: Place, finished: Place, step: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with exclusive(place.data / "work", step):
        code = place.run(step)
    clear(capfd.readouterr().err, code, f"{step} is already running (process {os.getpid()})")
    assert code == 7
    assert place.output(step) == finished.output(step)
    assert place.run(step) == 0


def test_help_and_refusals_do_not_wait_for_torch(place: Place) -> None:
    (place.folder / "params.yaml").write_text("distil: {}", encoding="utf-8")
    line = [sys.executable, "-X", "importtime", "-m", "clpdd.cli", *place.options, "index"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "did you mean distill?" in done.stderr
    assert "| torch\n" not in done.stderr.replace(" ", "")
    assert cli.__name__ == "clpdd.cli"
