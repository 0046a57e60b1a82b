"""How much memory is free: of a CUDA device, or of the machine as far as this process may use it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["device_bytes", "free_bytes", "limit"]

_CONTEXT = int(0.6 * 2**30)  # what CUDA itself takes of a device: its context, loaded kernels, libraries' workspaces
_USABLE = 0.98  # of the rest: what is freed cannot always be used again as one piece
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``, what torch holds in reserve included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_machine(), _container())


def device_bytes(device: torch.device, memory: float = 0.0) -> int:
    """Bytes of ``device`` that tensors may take, whatever lies there now.

    Of a CUDA device a function of ``memory`` and of the memory that it has altogether, so that a run repeated beside
    others is planned in the same way; elsewhere what is free.

    Args:
        memory: GiB that may be used, CUDA's own included; 0 is all that the device has.
    """
    if device.type != "cuda":
        free = free_bytes(device)
        return min(free, int(memory * 2**30)) if memory else free
    total = torch.cuda.get_device_properties(device).total_memory
    return max(0, int(_USABLE * ((min(total, int(memory * 2**30)) if memory else total) - _CONTEXT)))


@contextlib.contextmanager
def limit(device: torch.device, memory: float) -> Iterator[None]:
    """Refuse to take more than ``memory`` GiB of a CUDA device in the block; 0 sets no limit."""
    if device.type != "cuda" or not memory:
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    number = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, memory * 2**30 - _CONTEXT) / total), number)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, number)


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
