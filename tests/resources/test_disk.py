"""The disk is full, read-only or limited: told in one paragraph, and nothing is lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from .conftest import OUTPUTS, STEPS, Place, clear


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
