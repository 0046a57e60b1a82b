"""Nearest neighbours by cosine: a classifier without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..functional.parts import WHOLE, Part, directions

__all__ = ["Neighbours"]


class Neighbours:
    """``P`` classifiers by the ``k`` most similar of ``n`` images each, by cosine of the features.

    The class that most of them are of wins; of equals the one whose most similar image is nearer. The other classes
    follow in the same order, those without a vote by their nearest image.

    Args:
        Z: features ``(P, n, d)``.
        labels: classes ``(P, n)`` int64.
        classes: how many there are.
        k: of each classifier, in [1, n].
        parts: of a joint encoder, whose cosine is the members' average by the shares.
    """

    def __init__(
        self, Z: Tensor, labels: Tensor, classes: int, k: Sequence[int], parts: Sequence[Part] = WHOLE
    ) -> None:
        self.shape = len(Z), classes
        self.device = Z.device
        self.width = max(len(Z) * classes, Z.shape[0] * Z.shape[1])
        self._parts, self._k = parts, torch.tensor(list(k), device=Z.device)
        self._directions = directions(Z.float().flatten(0, 1), parts)
        self._labels = labels.to(Z.device)

    def scorer(self) -> Callable[[Tensor], Tensor]:
        """Features ``(b, d)`` to votes ``(b, P, C)``, plus less than one for how near a class's nearest image is."""
        return self._scores

    def _scores(self, Z: Tensor) -> Tensor:
        rows, (count, classes) = len(Z), self.shape
        similar = (directions(Z, self._parts) @ self._directions.T).view(rows, count, -1)  # (b, P, n)
        labels = self._labels.expand(rows, -1, -1)
        most = int(self._k.max())
        nearest = similar.topk(most, dim=2).indices
        counted = torch.arange(most, device=self.device) < self._k[:, None]  # (P, most)
        votes = similar.new_zeros(rows, count, classes)
        votes.scatter_add_(2, labels.gather(2, nearest), counted.to(votes).expand(rows, -1, -1))
        closest = torch.full_like(votes, -1).scatter_reduce(2, labels, similar, "amax")
        return votes + (closest.clamp(-1, 1) + 1) / 4
