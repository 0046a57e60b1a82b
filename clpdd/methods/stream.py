"""Real images in shuffled batches, decoded ahead of their use."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ..datasets.index import Index
from ..distributed.group import ALONE, Ranks
from ..functional.seeding import generator

__all__ = ["RealStream"]

_KEPT_BYTES = 4 * 2**30  # decoded images are kept for later epochs when all of them fit in here


class RealStream:
    """Batches of training images: each epoch a new order without repetition, its incomplete last batch dropped.

    The batch of a step is a function of (seed, step). The next one is decoded in threads while this one is used
    (Pillow decodes and resizes without the interpreter's lock), and images decoded once are kept where memory allows.
    Call ``close`` when done with it, or use it in ``contextlib.closing``.

    Attributes:
        own: places in a batch whose images are decoded here.

    Args:
        index: the training split.
        transform: PIL image -> ``(3, s, s)`` uint8.
        batch: images in a batch; cut to the size of the split.
        ranks: this process among those that decode a part of every batch each.
        threads: decoding threads.
    """

    def __init__(
        self,
        index: Index,
        transform: Callable[[Any], Tensor],
        batch: int,
        seed: int,
        threads: int = 2,
        ranks: Ranks = ALONE,
    ) -> None:
        self.index, self.transform, self.seed = index, transform, seed
        self.batch = min(batch, len(index))
        self.own = ranks.span(self.batch)
        self.labels = torch.tensor(index.labels)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._order: tuple[int, Tensor] | None = None
        self._ahead: tuple[int, list[Future[Tensor]]] | None = None
        self._kept: dict[int, Tensor] | None = {} if len(index) * self._image_bytes() <= _KEPT_BYTES else None

    def _image_bytes(self) -> int:
        return self.transform(self.index.image(0)).numel()

    def close(self) -> None:
        """Drop what is being decoded and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def rows(self, step: int) -> Tensor:
        """Rows of the index ``(batch,)`` that make the batch of a step."""
        per_epoch = len(self.index) // self.batch
        epoch, place = divmod(step, per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(len(self.index), generator=generator(self.seed, "real", epoch))
        return self._order[1][place * self.batch : (place + 1) * self.batch]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Images ``(len(own), 3, s, s)`` uint8 of a step, those of this rank, and labels ``(batch,)`` of all."""
        rows = self.rows(step)
        waiting = self._ahead[1] if self._ahead is not None and self._ahead[0] == step else self._begin(rows)
        images = torch.stack([image.result() for image in waiting])
        self._ahead = step + 1, self._begin(self.rows(step + 1))
        return images, self.labels[rows]

    def _begin(self, rows: Tensor) -> list[Future[Tensor]]:
        own = rows[self.own.start : self.own.stop]
        return [self._pool.submit(self._image, row) for row in own.tolist()]

    def _image(self, row: int) -> Tensor:
        if self._kept is None:
            return self.transform(self.index.image(row))
        if row not in self._kept:
            self._kept[row] = self.transform(self.index.image(row))
        return self._kept[row]
