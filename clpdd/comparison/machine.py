"""What a reading was taken on: without it a second is not a second."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from ..decoding import available_cores

__all__ = ["describe_machine"]


def describe_machine(device: torch.device) -> str:
    """Processor, cores that may be used, torch's threads, and the accelerator: no name of a host or a user."""
    parts = [f"{_processor()}, {available_cores()} of {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if device.type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    elif device.type != "cpu":
        parts.append(device.type)
    return "; ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
