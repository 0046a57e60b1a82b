"""Checkpoints off the step's way: when to save, a copy of the state, and a thread that writes it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from ..config.runtime import RuntimeSettings
from ..storage.checkpoint import Checkpoint, save_checkpoint

__all__ = ["Saver"]

_EARLY = 4  # a save begins this part of its interval early, and has that long to reach the disk
_BLOCK = 2**26  # bytes of page-locked memory


class Saver:
    """Writes checkpoints while the steps go on. Use as a context manager, which waits for what is being written.

    A save holds the steps up for a copy of the state alone. There is one copy, so two saves never overlap. No more than
    ``checkpoint_every_steps`` steps are ever at stake: a save begins a quarter of that early, and where it is not whole
    when the interval is over, ``hold`` waits for it. What goes wrong with the writing is raised by the next call.

    Args:
        folder: of the checkpoints.
        step: at which this run begins.
        runtime: the intervals ``checkpoint_every_steps`` and ``checkpoint_every_seconds``; whichever is over first.
    """

    def __init__(self, folder: Path, step: int, runtime: RuntimeSettings) -> None:
        self.folder = folder
        self.every_steps, self.every_seconds = runtime.checkpoint_every_steps, runtime.checkpoint_every_seconds
        self._written = step  # a checkpoint of this step is whole
        self._saved, self._saved_at = step, time.monotonic()
        self._copies: dict[str, Tensor] = {}
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()

    def due(self, step: int) -> bool:
        """Whether to save after ``step`` steps."""
        if self._writing is not None:
            if not self._writing.done():
                return False
            self.wait()
        by_steps = step - self._saved >= self.every_steps - self.every_steps // _EARLY
        return by_steps or time.monotonic() - self._saved_at >= self.every_seconds * (1 - 1 / _EARLY)

    def save(self, step: int, changing: Mapping[str, Tensor], lasting: Mapping[str, Tensor], values: Any) -> None:
        """Copy the state and begin to write it.

        Args:
            changing: tensors that later steps change in place; copied.
            lasting: tensors that nobody changes any more.
            values: JSON values that nobody changes any more.
        """
        self.wait()
        tensors = {**self._copied(changing), **lasting}
        self._saved, self._saved_at = step, time.monotonic()
        self._writing = self._thread.submit(save_checkpoint, self.folder, Checkpoint(step, tensors, values))

    def hold(self, step: int) -> None:
        """Wait where one more step than ``step`` would put more at stake than the interval."""
        if step - self._written >= self.every_steps:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more. Raises what went wrong: ``ResourceError`` of a full disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
            self._written = self._saved

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, in the memory of the last save where it fits: new memory costs more than the copying."""
        copies = {}
        for name, tensor in tensors.items():
            copy = self._copies.pop(name, None)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype)
            copies[name] = _copy(tensor.detach(), copy)
        self._copies = copies
        return dict(copies)


def _copy(source: Tensor, target: Tensor) -> Tensor:
    """``target.copy_(source)``; from a CUDA device through a little page-locked memory, several times as quick.

    A state that lies in page-locked memory itself would take up to twice its size: torch rounds up to a power of two.
    """
    if not source.is_cuda:
        return target.copy_(source)
    block = torch.empty(_BLOCK // source.element_size(), dtype=source.dtype, pin_memory=True)
    return _copy_through(source, target, block)


def _copy_through(source: Tensor, target: Tensor, block: Tensor) -> Tensor:
    """Copy by way of ``block (b,)``, part by part; ``target`` is contiguous."""
    parts = zip(source.reshape(-1).split(len(block)), target.view(-1).split(len(block)), strict=True)
    for part, place in parts:
        place.copy_(block[: len(part)].copy_(part))
    return target
