"""Training features class by class, in memory that is bounded and told in advance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ResourceError
from ..functional.parts import Part, even_factors
from ..runtime.machine import free_bytes
from .kernels import Kernels
from .store import FeatureStore

__all__ = ["ClassFeatures", "Scale"]

log = logging.getLogger(__name__)

_BYTES = 2**30  # features of several classes are held at once up to here
_BLOCK_ROWS = 8192
_BLOCK_BYTES = 40  # for each number of a block that is read and scaled
_LABEL_BYTES = 64  # for each row of the store: where it is put


@dataclass(frozen=True)
class Scale:
    """Features as distances are taken of them: centred, and members of a joint encoder brought to their shares."""

    mean: Tensor
    factors: Tensor

    @classmethod
    def of(cls, kernels: Kernels, parts: Sequence[Part]) -> Scale:
        """By the moments of the training features, float64."""
        moments = kernels.moments
        return cls(moments.mean, even_factors(parts, moments.variances))

    def __call__(self, Z: Tensor) -> Tensor:
        """Float64 features ``(b, d)`` of such of any float type."""
        return (Z.double() - self.mean) * self.factors


class ClassFeatures:
    """Training features class by class: iterate for ``(label, rows (n_c,), Z (n_c, d) float64)``, labels ascending.

    Neighbouring classes are read together, as many as 1 GiB holds, so that the store is read in as few passes as that
    allows; a class is handed out as a copy of its own, so that whoever keeps it keeps no others. What it takes is told
    before anything is read.

    Args:
        store: of the training split.
        parts: of the encoder.
        name: what messages call the method.
        working: float64 numbers that are held beside a class's features while they are used, by the class and how
            many rows it has.
        kept: bytes that stay from class to class.

    Attributes:
        bytes: at the peak, working memory included.
        passes: over the store.

    Raises:
        ResourceError: the largest class does not fit into the free memory.
    """

    def __init__(
        self,
        store: FeatureStore,
        kernels: Kernels,
        parts: Sequence[Part],
        name: str,
        working: Callable[[int, int], int],
        kept: int = 0,
    ) -> None:
        self.store, self.scale = store, Scale.of(kernels, parts)
        self.counts = torch.bincount(store.labels, minlength=len(store.class_names)).tolist()
        row = 8 * self.store.dim
        self._groups = self._cut(_BYTES // row)
        held = row * max(sum(self.counts[group.start : group.stop]) for group in self._groups)
        used = [row * count + 8 * working(label, count) for label, count in enumerate(self.counts)]
        label = used.index(max(used))  # the class that takes the most
        block = _BLOCK_BYTES * min(_BLOCK_ROWS, len(store)) * store.dim + _LABEL_BYTES * len(store)
        reading = block + row * max(self.counts)  # while the last class is still in use
        self.bytes, self.passes = held + kept + max(used[label], reading), len(self._groups)
        free = free_bytes(torch.device("cpu"))
        where, largest = store.class_names[label], self.counts[label]
        if self.bytes > free:
            raise ResourceError(
                f"{name} needs {self.bytes / 2**30:.2f} GiB for the features of the class {where!r} ({largest} images "
                f"of {self.store.dim} features), and {free / 2**30:.2f} GiB are free: lower dataset.max_per_class.train"
            )
        passes = "1 pass" if self.passes == 1 else f"{self.passes} passes"
        log.info("%s: %.2f GiB of memory at most, %s over the features", name, self.bytes / 2**30, passes)

    def _cut(self, rows: int) -> list[range]:
        """Neighbouring classes that have at most ``rows`` rows together; a larger one stands alone."""
        groups, start, held = [], 0, 0
        for label, count in enumerate(self.counts):
            if held and held + count > rows:
                groups.append(range(start, label))
                start, held = label, 0
            held += count
        return [*groups, range(start, len(self.counts))]

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        for group in self._groups:
            yield from self._read(group)

    def _read(self, group: range) -> Iterator[tuple[int, Tensor, Tensor]]:
        labels = self.store.labels
        members = ((labels >= group.start) & (labels < group.stop)).nonzero().flatten()
        members = members[labels[members].sort(stable=True).indices]  # class by class, in the order of the rows
        place = torch.full((len(labels),), -1)
        place[members] = torch.arange(len(members))
        Z = torch.empty(len(members), self.store.dim, dtype=torch.float64)
        for number, (block, _) in enumerate(self.store.scan(_BLOCK_ROWS)):
            target = place[number * _BLOCK_ROWS :][: len(block)]
            wanted = target >= 0
            if bool(wanted.any()):
                Z[target[wanted]] = self.scale(block[wanted])
        sizes = self.counts[group.start : group.stop]
        for label, rows, own in zip(group, members.split(sizes), Z.split(sizes), strict=True):
            yield label, rows, own.clone()
