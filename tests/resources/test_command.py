"""What the command makes of errors and signals that no stage has explained."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from clpdd.cli.main import build_parser
from clpdd.stages import kernels
from clpdd.storage.work import exclusive

from .conftest import Place, clear, command


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(project: object, encoder: str) -> None:
        try:
            raise error
        except OSError as inner:
            if inner.errno == errno.EDQUOT:
                raise RuntimeError("a library speaks") from inner
            raise

    monkeypatch.setattr(kernels, "run_kernels", fail)


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
        from clpdd.cli import main
        from clpdd.stages import kernels
        def stubborn(project, encoder):
            try:
                os.kill(os.getpid(), signal.{name})
            except BaseException:
                pass
            print("the signal did not arrive")
        kernels.run_kernels = stubborn
        sys.exit(main.main({[*place.options, *command("kernels")]!r}))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    # the last line alone: an old torch warns of a package beside it as it is imported
    assert done.stderr.splitlines()[-1] == (
        f"clpdd: stopped by {name}; finished work is kept, run the same command to go on"
    )
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
    line = [sys.executable, "-X", "importtime", "-m", "clpdd", *place.options, "index"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "did you mean distill?" in done.stderr
    assert "| torch\n" not in done.stderr.replace(" ", "")
    assert build_parser().prog == "clpdd"
