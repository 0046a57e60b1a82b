"""The machine: its cores, its memory, what was used of it, and the errors that say it is exhausted."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ResourceError, first_line

if TYPE_CHECKING:
    import torch

__all__ = [
    "available_cores",
    "describe_machine",
    "device_bytes",
    "explain_memory_errors",
    "free_bytes",
    "is_memory_error",
    "limit",
    "peak_memory_mb",
]

_CONTEXT = int(0.6 * 2**30)  # what CUDA itself takes of a device: its context, loaded kernels, libraries' workspaces
_USABLE = 0.98  # of the rest: what is freed cannot always be used again as one piece
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be taken on ``device``, what torch holds in reserve included."""
    import torch  # here: the command line and decoding processes start without it

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
    import torch  # here: the command line and decoding processes start without it

    if device.type != "cuda":
        free = free_bytes(device)
        return min(free, int(memory * 2**30)) if memory else free
    total = torch.cuda.get_device_properties(device).total_memory
    return max(0, int(_USABLE * ((min(total, int(memory * 2**30)) if memory else total) - _CONTEXT)))


@contextlib.contextmanager
def limit(device: torch.device, memory: float) -> Iterator[None]:
    """Refuse to take more than ``memory`` GiB of a CUDA device in the block; 0 sets no limit."""
    import torch  # here: the command line and decoding processes start without it

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


@contextlib.contextmanager
def explain_memory_errors(remedy: str) -> Iterator[None]:
    """Turn exhausted memory, of the machine or of a device, into a ``ResourceError`` that names the ``remedy``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        said = first_line(error) if str(error).strip() else "no more can be had"
        raise ResourceError(f"memory ran out ({said}): {remedy}") from error


def is_memory_error(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out. Torch says so of the CPU's in a plain ``RuntimeError``."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "can't start new thread")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def peak_memory_mb() -> float:
    """High-water mark in MiB of the device's memory where CUDA is in use, else of this process's resident set."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        return float(sys.modules["torch"].cuda.max_memory_allocated() / 2**20)
    with contextlib.suppress(OSError):  # Linux: getrusage would count what the parent held when it started us
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(device: torch.device) -> str:
    """Processor, cores that may be used, torch's threads, and the accelerator: no name of a host or a user."""
    import torch  # here: the command line and decoding processes start without it

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
