"""Memory runs out: the setting that lowers it is named, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch
import yaml

from clpdd.encoders.encoder import Encoder

from .conftest import SETTINGS, Place, clear, command

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
        import clpdd.stages.distill
        from clpdd.cli.main import main
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 700 * 2**20,) * 2)
        sys.exit(main({[*place.options, *command("distill")]!r}))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    clear(done.stderr, done.returncode, "memory ran out")
    assert done.returncode == 5
