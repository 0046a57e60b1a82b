"""Seconds: of repeated work, and of the parts that one piece of work is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clpdd.runtime.machine import is_memory_error

__all__ = ["OUT_OF_MEMORY", "Stopwatch", "fits", "seconds", "synchronise"]

OUT_OF_MEMORY = "out of memory"
"""In the place of a reading."""


def synchronise(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(works: Sequence[Callable[[], object]], device: torch.device, repeats: int) -> list[float]:
    """Median seconds of each piece of work over ``repeats``, taken in turns, after one warm-up of each."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, taken in zip(works, times, strict=True):
            synchronise(device)
            begun = time.perf_counter()
            work()
            synchronise(device)
            if repeat:
                taken.append(time.perf_counter() - begun)
    return [statistics.median(taken) for taken in times]


def fits(work: Callable[[], object], device: torch.device) -> bool:
    """Whether there is memory for it."""
    try:
        work()
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
    else:
        return True
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return False


class Stopwatch:
    """Every moment between ``start`` and ``stop`` belongs to the part that was entered last.

    Entering waits for the device, so that the readings say which part takes which share; the sum is a little more than
    the same work takes unwatched.

    Attributes:
        parts: seconds by name, in the order of their first appearance.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.parts: dict[str, float] = {}
        self._current = ""
        self._since = 0.0

    def enter(self, part: str) -> None:
        """From now on time belongs to ``part``."""
        synchronise(self.device)
        now = time.perf_counter()
        if self._current:
            self.parts[self._current] = self.parts.get(self._current, 0.0) + now - self._since
        self._current, self._since = part, time.perf_counter()

    def stop(self) -> None:
        """The work is over."""
        self.enter("")

    def on_the_way_back(self, tensor: Tensor, part: str) -> Tensor:
        """``tensor`` unchanged; a backward pass enters ``part`` when it comes to it."""
        if not tensor.requires_grad:
            return tensor
        passed: Tensor = _Milestone.apply(tensor, self, part)
        return passed


class _Milestone(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, watch: Stopwatch, part: str) -> Tensor:
        context.watch, context.part = watch, part
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        context.watch.enter(context.part)
        return gradients[0], None, None
