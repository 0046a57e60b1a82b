"""A step shared by processes, each with a device or a thread of its own: ``python -m speed.processes`` is one."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import clpdd.encoders.architectures  # noqa: F401  (registers the shipped encoder's architecture)
from clpdd.distributed.launch import connect
from clpdd.encoders.calling import pass_through
from clpdd.encoders.deterministic import deterministic

from .clock import seconds
from .shape import SHAPES, Workload
from .steps import take
from .table import Section

__all__ = ["processes"]


def processes(shape: str, device: torch.device, sizes: Sequence[int], images: int, repeats: int) -> Section:
    """Seconds of the same step taken by several processes: over gloo on a CPU, over NCCL on CUDA devices."""
    about = SHAPES[shape].with_images(images)
    title = f"Scaling over processes: {about.model}, {about.size} px, {images} images x {about.views} views"
    columns = ["processes", "milliseconds a step", "times quicker", "of the ideal", "step / bare passes of its share"]
    section = Section(title, columns)
    base = None
    for size in sizes:
        whole, bare = _together(shape, device, size, images, repeats)
        base = base or whole * size  # of the first, which need not be one process
        section.add(size, 1e3 * whole, base / whole, f"{100 * base / whole / size:.0f} %", whole / bare)
    if device.type == "cpu":
        section.notes.append("One thread each: more processes than free cores take turns.")
    return section


def _together(shape: str, device: torch.device, size: int, images: int, repeats: int) -> tuple[float, float]:
    """Seconds of a step, and of the bare encoder passes over one process's share of the views."""
    command = [sys.executable, "-m", "speed.processes", shape, device.type, str(images), str(repeats)]
    common = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    started = []
    for rank in range(size):
        variables = {name: str(value) for name, value in {"RANK": rank, "LOCAL_RANK": rank, **common}.items()}
        started.append(
            subprocess.Popen(
                command,
                env={**os.environ, **variables},
                cwd=Path(__file__).parent.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ends = [process.communicate() for process in started]
    for process, (_, said) in zip(started, ends, strict=True):
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} left with {process.returncode}: {said[-2000:]}")
    whole, bare = json.loads(ends[0][0].splitlines()[-1])
    return whole, bare


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("device", choices=["cpu", "cuda"])
    parser.add_argument("images", type=int)
    parser.add_argument("repeats", type=int)
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    with connect() as ranks:
        device = ranks.device(torch.device(options.device))
        problem = Workload(SHAPES[options.shape].with_images(options.images), device, ranks=ranks)
        numbers = iter(range(1_000_000))
        with deterministic(device, lambda: pass_through(problem.encoder)):
            taken = seconds([lambda: take(problem, next(numbers)), problem.bare], device, options.repeats)
        if ranks.is_main:
            print(json.dumps(taken))


if __name__ == "__main__":
    _main()
