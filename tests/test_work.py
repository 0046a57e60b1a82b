"""The work folder: exclusive, resumable, published whole."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from clpdd.errors import BusyError, ResourceError
from clpdd.storage.files import explain_os_errors, publish, sha256_tree, write_bytes
from clpdd.storage.work import WorkFolder, fingerprint


def open_work(root: Path, **parts: object) -> WorkFolder:
    return WorkFolder(root / "work", "stage", "enc/item", fingerprint(**parts))


def fill(work: WorkFolder, text: str = "result") -> None:
    write_bytes(work.out / "set" / "file.txt", text.encode())


def test_finished_work_is_published_again_without_being_made_again(tmp_path: Path) -> None:
    target = tmp_path / "out" / "set"
    calls = []
    for _ in range(2):
        with open_work(tmp_path, a=1) as work:

            def make(work: WorkFolder = work) -> None:
                calls.append(1)
                fill(work)

            work.produce(make, {"set": target})
        assert (target / "file.txt").read_text() == "result"
        (target / "file.txt").unlink()  # as DVC does before a stage runs
        target.rmdir()
    assert len(calls) == 1


def test_altered_finished_work_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_work(tmp_path, a=1) as work:
        work.produce(lambda: fill(work), {"set": tmp_path / "set"})
        (work.out / "set" / "file.txt").unlink()
        write_bytes(work.out / "set" / "file.txt", b"other")
    with open_work(tmp_path, a=1) as work:
        assert work.produce(lambda: fill(work), {"set": tmp_path / "set"})
    assert "altered" in caplog.text
    assert (tmp_path / "set" / "file.txt").read_text() == "result"


def test_partial_work_of_other_settings_is_set_aside_and_the_setting_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_work(tmp_path, settings={"steps": 5, "ridge": 1.0}) as work:
        write_bytes(work.path / "partial", b"half")
        kept = work.path / "partial"
    with caplog.at_level(logging.WARNING), open_work(tmp_path, settings={"steps": 6, "ridge": 1.0}) as other:
        assert not (other.path / "partial").exists()
    assert "settings.steps was 5, is 6" in caplog.text
    assert "ridge" not in caplog.text
    assert kept.read_bytes() == b"half"


def test_a_second_run_is_told_who_holds_the_work(tmp_path: Path) -> None:
    with open_work(tmp_path, a=1), pytest.raises(BusyError, match=str(os.getpid())):
        open_work(tmp_path, a=2).__enter__()
    with open_work(tmp_path, a=2):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from clpdd.storage.work import WorkFolder, fingerprint
        with WorkFolder(Path({str(tmp_path / "work")!r}), "stage", "enc/item", fingerprint(a=1)) as work:
            (work.path / "partial").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -signal.SIGKILL
    with open_work(tmp_path, a=1) as work:
        assert (work.path / "partial").read_text() == "half"


def test_older_finished_work_goes_when_newer_is_finished(tmp_path: Path) -> None:
    for value in (1, 2):
        with open_work(tmp_path, a=value) as work:
            work.produce(lambda: fill(work, str(value)), {"set": tmp_path / "set"})  # noqa: B023
    assert len([p for p in work.home.iterdir() if p.is_dir()]) == 1
    assert (tmp_path / "set" / "file.txt").read_text() == "2"


def test_publishing_replaces_the_whole_and_clears_leftovers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bytes(tmp_path / name / name, name.encode())
    publish(tmp_path / "a", tmp_path / "target")
    leftover = tmp_path / ".clpdd-tmp-1-target"
    leftover.mkdir()
    publish(tmp_path / "b", tmp_path / "target")
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["b"]
    assert not leftover.exists()
    assert sha256_tree(tmp_path / "target") == sha256_tree(tmp_path / "b")


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_explained_with_its_remedy(tmp_path: Path) -> None:
    """A real one: /dev/full refuses every write."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(ResourceError, match=r"disk is full.*finished work is kept"):
        with explain_os_errors("write", "/dev/full"), open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")


def test_a_file_in_the_way_of_a_folder_is_explained(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("in the way")
    with pytest.raises(ResourceError, match="work"):
        open_work(tmp_path, a=1).__enter__()
