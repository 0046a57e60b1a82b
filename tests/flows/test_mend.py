"""Half-written files of DVC's own are removed; whole ones, and files that are being written, stay."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from clpdd.flows.mend import mend

LOCK = Path(__file__).parents[2] / "dvc.lock"
WHOLE = (
    "schema: '2.0'\nstages:\n  a:\n    cmd: echo a\n    outs:\n    - path: a.txt\n      hash: md5\n      md5: 60b7\n"
)


def test_whole_files_and_absent_ones_are_left(tmp_path: Path) -> None:
    assert mend(tmp_path) == []
    (tmp_path / "dvc.lock").write_text(WHOLE)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text('{"write": {}, "read": {}}')
    assert mend(tmp_path) == []
    if LOCK.exists():
        (tmp_path / "dvc.lock").write_bytes(LOCK.read_bytes())
        assert mend(tmp_path) == []


@pytest.mark.parametrize("length", [0, 3, 20, 55])
def test_a_cut_lock_file_is_removed(tmp_path: Path, length: int) -> None:
    (tmp_path / "dvc.lock").write_text(WHOLE[:length])
    assert mend(tmp_path, patience=0) == ["dvc.lock"]
    assert not (tmp_path / "dvc.lock").exists()


@pytest.mark.parametrize("text", ["", '{"write": {', "[]"])
def test_a_cut_list_of_path_locks_is_removed(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert mend(tmp_path, patience=0) == [".dvc/tmp/rwlock"]


def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "dvc.lock").write_text("")

    def finish() -> None:
        time.sleep(0.1)
        (tmp_path / "dvc.lock").write_text(WHOLE)

    writer = threading.Thread(target=finish)
    writer.start()
    assert mend(tmp_path, patience=0.5) == []
    writer.join()
