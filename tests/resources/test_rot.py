"""Files that vanish between stages, rot in partial work or are left by the killed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clpdd.storage.files import sweep, write_bytes

from .conftest import NAME, Place, clear


@pytest.mark.parametrize(
    ("gone", "step", "remedy"),
    [
        ("index/train.parquet", "cache", "index"),
        (f"features/{NAME}/train.zarr", "kernels", "run the cache stage"),
        (f"features/{NAME}/train.zarr/features/c/1/0", "kernels", "run the cache stage"),
        (f"features/{NAME}/validation.zarr", "distill", "run the cache stage"),
        (f"kernels/{NAME}/kernels.json", "distill", "run the stage that makes it"),
        (f"kernels/{NAME}/moments.safetensors", "distill", "run the kernels stage"),
        (f"distilled/{NAME}/clp", "evaluate", "run the stage distill"),
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
