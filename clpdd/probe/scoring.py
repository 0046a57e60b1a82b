"""What probes, and other classifiers of features, get right of test features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .linear import Judged

__all__ = ["Score", "score"]

_DENSE = 2**22  # numbers counted in one vector, and numbers kept before they are counted otherwise


@dataclass(frozen=True)
class Score:
    """What ``P`` probes get right of ``N`` images.

    Attributes:
        top1, top5: ``P`` percentages. Top-5 is top-C with fewer than five classes, hence 100.
        mean_per_class: ``P`` percentages, the mean of the classes' top-1, over those that have images.
        pairs: ``(3, k)`` int64 on the CPU: true class, the class it was taken for, and how often, summed over the
            probes; the pairs that occur alone, sorted.
        classes: ``C``.
        groups: ``(P, G)`` float64, top-1 in percent of the images of each group; ``None`` without groups.
    """

    top1: list[float]
    top5: list[float]
    mean_per_class: list[float]
    pairs: Tensor
    classes: int
    groups: Tensor | None = None

    @property
    def confusion(self) -> Tensor:
        """``(C, C)`` int64, images of class ``row`` taken for class ``column``, summed over the probes."""
        matrix = torch.zeros(self.classes, self.classes, dtype=torch.int64)
        matrix[self.pairs[0], self.pairs[1]] = self.pairs[2]
        return matrix


def score(probes: Judged, blocks: Iterable[tuple[Tensor, Tensor]], groups: Tensor | None = None) -> Score:
    """Score probes on blocks of features ``(b, d)`` and labels ``(b,)``, read once, in float32.

    Args:
        groups: ``(N,)`` int64 in ``[0, G)``, the group of every row of the blocks in their order; none is empty.
    """
    (count, classes), device, scorer = probes.shape, probes.device, probes.scorer()
    hits = torch.zeros(2, count, dtype=torch.int64, device=device)
    by_class = torch.zeros(classes, count, dtype=torch.int64, device=device)
    shown = torch.zeros(classes, dtype=torch.int64, device=device)
    confusion = _Counts(classes * classes, device)
    total = 0
    sizes = torch.zeros(0, dtype=torch.int64) if groups is None else groups.bincount()
    grouped = torch.zeros(len(sizes), count, dtype=torch.int64, device=device)
    step = max(1, 2**26 // probes.width)
    for features, labels in blocks:
        for Z, y in zip(torch.split(features, step), torch.split(labels, step), strict=True):
            Z, y = Z.to(device, torch.float32), y.to(device)
            ranked = scorer(Z).topk(min(5, classes), dim=-1).indices  # (b, P, 5)
            right = ranked == y[:, None, None]
            guess = ranked[..., 0]
            hits += torch.stack([right[..., 0].sum(0), right.any(-1).sum(0)])
            by_class.index_add_(0, y, right[..., 0].long())
            shown += torch.bincount(y, minlength=classes)
            confusion.add((y[:, None] * classes + guess).flatten())
            if groups is not None:
                grouped.index_add_(0, groups[total : total + len(y)].to(device), right[..., 0].long())
            total += len(y)
    top1, top5 = (hits.cpu().double() * 100 / max(total, 1)).tolist()
    shares = None if groups is None else (grouped.cpu().double() * 100 / sizes[:, None]).T
    seen = shown > 0
    each = by_class[seen].cpu().double() * 100 / shown[seen].cpu()[:, None]  # (classes that have images, P)
    mean_per_class = each.mean(0).tolist() if len(each) else [0.0] * count
    places, counts = confusion.found()
    pairs = torch.stack([places // classes, places % classes, counts])
    return Score(top1, top5, mean_per_class, pairs, classes, shares)


class _Counts:
    """How often each number in ``[0, size)`` occurs: a vector of all of them, or, of very many, those that do."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._all = torch.zeros(size, dtype=torch.int64, device=device) if size <= _DENSE else None
        self._places, self._counts = (torch.zeros(0, dtype=torch.int64, device=device) for _ in range(2))
        self._waiting: list[Tensor] = []

    def add(self, numbers: Tensor) -> None:
        """Count ``(n,)`` numbers."""
        if self._all is not None:
            self._all += torch.bincount(numbers, minlength=len(self._all))
            return
        self._waiting.append(numbers)
        if sum(map(len, self._waiting)) > _DENSE:
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        counts = [self._counts, *(torch.ones_like(numbers) for numbers in self._waiting)]
        self._places, into = torch.unique(torch.cat([self._places, *self._waiting]), return_inverse=True)
        self._counts = torch.zeros_like(self._places).index_add_(0, into, torch.cat(counts))
        self._waiting = []

    def found(self) -> tuple[Tensor, Tensor]:
        """The numbers that occur, ascending, and how often: on the CPU."""
        if self._all is not None:
            places = self._all.nonzero().flatten()
            return places.cpu(), self._all[places].cpu()
        self._merge()
        return self._places.cpu(), self._counts.cpu()
