"""Everything that computes stays on the encoder's device, on one that is not the CPU and has no float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .device import COMPILER, build
from .ranks import PATIENCE, Launcher

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(COMPILER is None, reason="the test device has to be compiled: needs a C++ compiler")
def test_another_device_gives_what_the_cpu_gives_alone_and_by_two_ranks(tmp_path: Path, launcher: Launcher) -> None:
    library = build(tmp_path)
    command = [sys.executable, "-m", "tests.device", str(library), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in launcher.ranks(*[command[1:]] * 2):
        said = rank.communicate(timeout=PATIENCE)[1]
        assert rank.returncode == 0, said[-4000:]
