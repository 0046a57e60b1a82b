"""Peak memory of a step, every point in a process of its own: ``python -m speed.memory SHAPE ...`` prints JSON."""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from clpdd.optimise.images import state_bytes
from clpdd.optimise.parameterisation import pyramid_resolutions

from .clock import OUT_OF_MEMORY, fits
from .shape import SHAPES, Workload
from .steps import take
from .table import Section

__all__ = ["memory"]

_MB = 2**20
_BATCH, _CLASSES = 64, 100  # the same for every number of images, so that nothing else differs


def memory(shape: str, device: torch.device, counts: Sequence[int], limit: int) -> Section:
    """Peak memory of CLP-DD by number of images, and of LGM up to ``limit`` images (its graph grows with them)."""
    about = SHAPES[shape]
    title = f"Peak memory: {about.model}, {about.size} px, passes of {_BATCH} views, one view of every image"
    what = "device" if device.type == "cuda" else "resident set"
    columns = ["method", "images", f"peak ({what}), MB", "levels and moments, MB", "peak less levels and moments, MB"]
    section = Section(title, columns)
    for method, counted in (("clp", counts), ("lgm", [n for n in counts if n <= limit])):
        for count in counted:
            read = _in_a_process(shape, device, method, count)
            if read is None:
                section.add(method, count, OUT_OF_MEMORY, None, None)
                continue
            rest = read["peak"] - (read["state"] if read["state_on_device"] else 0)
            section.add(method, count, read["peak"] / _MB, read["state"] / _MB, rest / _MB)
    section.notes.append("LGM with the graph of all its views, as published. Each row is one step in a fresh process.")
    return section


def _in_a_process(shape: str, device: torch.device, method: str, count: int) -> dict[str, Any] | None:
    """What the process read; ``None`` where its memory did not suffice."""
    command = [sys.executable, "-m", "speed.memory", shape, str(device), method, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} left with {done.returncode}: {done.stderr[-2000:]}")
    read: dict[str, Any] | None = json.loads(done.stdout.splitlines()[-1])
    return read


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("device")
    parser.add_argument("method", choices=["clp", "lgm"])
    parser.add_argument("images", type=int)
    options = parser.parse_args()
    device = torch.device(options.device)
    shape = replace(SHAPES[options.shape], views=1, batch=_BATCH)
    shape = shape.with_images(options.images, classes=min(options.images, _CLASSES))
    problem = Workload(shape, device)
    batch = len(problem.labels) if options.method == "lgm" else None
    if not fits(lambda: take(problem, 0, options.method, batch), device):
        print("null")
        return
    home = problem.images.parameterisation.home
    print(
        json.dumps(
            {
                "peak": _peak(device),
                "state": state_bytes(options.images, pyramid_resolutions(shape.size)),
                "state_on_device": home.type == device.type,
            }
        )
    )


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage would tell the peak of the process that started this one where that is higher
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _main()
