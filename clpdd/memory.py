"""How much memory is free: of a CUDA device, or of the machine as far as this process may use it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["free_bytes"]

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``, what torch holds in reserve included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_machine(), _container())


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no such file on macOS


def _container() -> int:
    """What a container's limit leaves; a very large number where there is none."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        return 2**62 if limit == "max" else max(0, int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return 2**62
