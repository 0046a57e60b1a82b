"""Seconds and peak memory of a piece of work: kept beside the pieces, never inside an artifact."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import ArtifactError, ResourceError
from ..runtime.machine import peak_memory_mb
from ..storage.files import read_json, write_json
from .subject import Subject, ViewedProtocol

__all__ = ["measured", "read_record"]


@contextlib.contextmanager
def measured(file: Path, protocol: ViewedProtocol, subject: Subject) -> Iterator[None]:
    """Add seconds and peak memory of the block to the piece's record, also when it is interrupted.

    ``seconds`` is what the piece takes when it is run alone; of these, ``shared_seconds`` were spent on encoding by
    another piece before and are not spent again.
    """
    device = subject.bench.encoder.device
    _reset_peak(device)
    subject.borrowed = 0.0
    start = time.perf_counter()
    try:
        yield
    finally:
        record = read_record(file)
        before = {"seconds": 0.0, "shared_seconds": 0.0, "peak_memory_mb": 0.0} | record.get(str(protocol), {})
        record[str(protocol)] = {
            "seconds": before["seconds"] + time.perf_counter() - start + subject.borrowed,
            "shared_seconds": before["shared_seconds"] + subject.borrowed,
            "peak_memory_mb": max(before["peak_memory_mb"], peak_memory_mb()),
        }
        # A reading that cannot be written neither stops the work nor hides the error that did.
        with contextlib.suppress(ResourceError):
            write_json(file, record)


def read_record(file: Path) -> dict[str, dict[str, float]]:
    with contextlib.suppress(ArtifactError):
        record: dict[str, dict[str, float]] = read_json(file)
        return record
    return {}


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # Linux: forget the high-water mark of earlier work
        Path("/proc/self/clear_refs").write_text("5")
