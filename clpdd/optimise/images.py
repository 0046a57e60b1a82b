"""What lasts from step to step: the images' levels and Adam's moments, on the device or in the machine's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functional.adam import adam_update
from ..runtime.machine import device_bytes
from .parameterisation import Parameterisation, to_uint8

__all__ = ["ImageState", "StateChunk", "state_bytes", "state_home"]

_SHOWN = 64  # images decoded at once to be looked at
_DEVICE_SHARE = 0.25  # of a device's memory: the encoder's passes need the rest


@dataclass(frozen=True)
class StateChunk:
    """Levels and moments of the images that have the numbers ``rows`` in the whole set, on the device.

    Each tensor is ``(len(rows), 3, r, r)``.
    """

    rows: range
    levels: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]


def state_bytes(n: int, resolutions: Sequence[int]) -> int:
    """Memory of levels and moments of ``n`` images, all levels there."""
    return n * 3 * sum(r * r for r in resolutions) * 4 * 3


def state_home(
    n: int, resolutions: Sequence[int], device: torch.device, where: str, memory: float = 0.0
) -> torch.device:
    """Where levels and moments are to lie: ``"device"``, ``"host"``, or ``"auto"``, the device where they fit.

    ``memory``: GiB of the device that may be used, as ``clpdd.runtime.machine.device_bytes`` takes it.
    """
    if where == "auto":
        where = "device" if state_bytes(n, resolutions) <= _DEVICE_SHARE * device_bytes(device, memory) else "host"
    return torch.device("cpu") if where == "host" else device


class ImageState:
    """Images as parameters that Adam updates some at a time.

    Where ``parameterisation.home`` is its device, chunks are views of the tensors there. Elsewhere they are copies: the
    next chunk comes in while one is worked on, and a changed one goes back when the next is asked for.

    Attributes:
        parameterisation: holds the levels.
        means, squares: Adam's moments, one tensor for every level.
        updates: updates since the moments were zero.
    """

    def __init__(self, parameterisation: Parameterisation) -> None:
        self.parameterisation = parameterisation
        self.device = parameterisation.device
        self.learning_rate = 0.0
        self._copied = parameterisation.home is not None and parameterisation.home != self.device
        self._stream = torch.cuda.Stream(self.device) if self._copied and self.device.type == "cuda" else None
        self.reset()

    def __len__(self) -> int:
        return len(self.parameterisation.rows)

    @property
    def on_device(self) -> int:
        """Bytes that levels and moments take on the device when all levels are there; 0 where they live elsewhere."""
        return 0 if self._copied else state_bytes(len(self), self.parameterisation.resolutions)

    @property
    def carried(self) -> int:
        """Bytes that an image takes there on a visit, those of the next one counted in; 0 where it lives there."""
        return 2 * state_bytes(1, self.parameterisation.resolutions) if self._copied else 0

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Pixels ``(c, 3, s, s)`` in [0, 1] of a chunk's levels."""
        return self.parameterisation.decode(levels)

    # -- Adam ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Moments of zero."""
        levels, settle = self.parameterisation.levels, self.parameterisation.settle
        self.means = [settle(torch.zeros(level.shape)) for level in levels]
        self.squares = [settle(torch.zeros(level.shape)) for level in levels]
        self.updates = 0

    def extend(self) -> None:
        """Add the next level and start Adam afresh."""
        self.finish()
        self.parameterisation.extend()
        self.reset()

    def begin(self, learning_rate: float) -> None:
        """Start an update, in which every chunk is to be handed to ``update`` once."""
        self.learning_rate = learning_rate
        self.updates += 1

    @torch.no_grad()
    def update(self, chunk: StateChunk, gradients: Sequence[Tensor]) -> None:
        """Adam's update of a chunk, in place."""
        fused = self.device.type not in ("cpu", "mps")
        where = self.device if fused else torch.device("cpu")
        counts = [torch.full((), self.updates - 1.0, device=where) for _ in chunk.levels]
        adam_update(chunk.levels, gradients, chunk.means, chunk.squares, counts, self.learning_rate, fused=fused)

    # -- chunks ----------------------------------------------------------------------------------------------------

    def chunks(self, size: int, update: bool = False) -> Iterator[StateChunk]:
        """All images in chunks of ``size``; see ``image_gradient.Images``. The moments come with ``update`` alone."""
        rows = self.parameterisation.rows
        spans = [range(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]
        waiting = self._fetch(spans[0], update)
        for k in range(len(spans)):
            chunk = waiting()
            if k + 1 < len(spans):
                waiting = self._fetch(spans[k + 1], update)
            yield chunk
            if update:
                self._put_back(chunk)

    def _fetch(self, rows: range, moments: bool) -> Callable[[], StateChunk]:
        """Begin to bring a chunk to the device; the result waits for it."""
        groups = [self.parameterisation.levels, *((self.means, self.squares) if moments else ([], []))]
        here = self._here(rows)
        if self._stream is None:
            parts = [[tensor[here] for tensor in group] for group in groups]
            if self._copied:
                parts = [[part.to(self.device, copy=True) for part in group] for group in parts]
            return lambda: StateChunk(rows, *parts)
        with torch.cuda.stream(self._stream):
            parts = [[tensor[here].to(self.device, non_blocking=True) for tensor in group] for group in groups]
            arrived = self._stream.record_event()

        def wait() -> StateChunk:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(arrived)
            for group in parts:
                for part in group:
                    part.record_stream(now)  # its memory was taken on the other stream
            return StateChunk(rows, *parts)

        return wait

    def _here(self, rows: range) -> slice:
        """Where the images with these numbers lie in the tensors held here."""
        first = self.parameterisation.rows.start
        return slice(rows.start - first, rows.stop - first)

    def _put_back(self, chunk: StateChunk) -> None:
        if not self._copied:
            return
        homes = (self.parameterisation.levels, self.means, self.squares)
        pairs = [
            (home[self._here(chunk.rows)], part)
            for group, parts in zip(homes, (chunk.levels, chunk.means, chunk.squares), strict=True)
            for home, part in zip(group, parts, strict=True)
        ]
        if self._stream is None:
            for home, part in pairs:
                home.copy_(part)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for home, part in pairs:
                home.copy_(part, non_blocking=True)
                part.record_stream(self._stream)

    def finish(self) -> None:
        """Wait for what is on its way back, before the tensors are read from outside."""
        if self._stream is not None:
            self._stream.synchronize()

    # -- from and to the outside -----------------------------------------------------------------------------------

    @torch.no_grad()
    def pictures(self, first: int | None = None) -> Tensor:
        """The images held here, or the ``first`` of them, ``(n, 3, s, s)`` uint8 on the CPU."""
        n, size = len(self) if first is None else min(first, len(self)), self.parameterisation.size
        made = torch.empty(n, 3, size, size, dtype=torch.uint8)
        for chunk in self.chunks(_SHOWN):
            here = self._here(chunk.rows)
            if here.start >= n:
                break
            made[here] = to_uint8(self.decode(chunk.levels))[: n - here.start]
        return made

    def tensors(self) -> dict[str, Tensor]:
        """Everything that ``restore`` needs, but the number of updates."""
        self.finish()
        named: dict[str, Tensor] = {}
        for k, level in enumerate(self.parameterisation.levels):
            named |= {f"level.{k}": level, f"adam.{k}.mean": self.means[k], f"adam.{k}.square": self.squares[k]}
        return named

    def restore(self, named: dict[str, Tensor], updates: int) -> None:
        """Take the tensors of an earlier state."""
        count = sum(name.startswith("level.") for name in named)
        settle: Any = self.parameterisation.settle
        self.parameterisation.levels = [settle(named[f"level.{k}"]) for k in range(count)]
        self.means = [settle(named[f"adam.{k}.mean"]) for k in range(count)]
        self.squares = [settle(named[f"adam.{k}.square"]) for k in range(count)]
        self.updates = updates
