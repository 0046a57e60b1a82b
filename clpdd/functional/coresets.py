r"""Coresets: which of ``n`` real examples stand for all, by their features ``Z (n, d)``.

Every function returns the rows it chose, in the order of choosing, without repetition; of equals the lowest row wins.
Numbers that differ by rounding alone are equals: both rows of a class of two are as far from its mean, and two rows
that are nearest to one another bring the same gain. What they hold beside ``Z`` is in ``coreset_memory``.
Give float64 features: a choice between two rows must not hang on rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ROWS", "GreedyRidge", "facility_location", "herding", "k_centre", "k_medoids"]

ROWS = 256
"""Candidates whose distances to all rows facility location holds at once."""

_ROUNDS = 100  # bound on the rounds of k-means
_SQUARES = 1e-12  # rounding of squared distances, as a share of the largest squared norm
_GAINS = 1e-9  # rounding of sums of distances: the root of a small square is off by far more than the square is


def k_centre(Z: Tensor, count: int) -> list[int]:
    """Greedy k-centre: the row nearest to the mean, then each time the row farthest from all chosen ones.

    The farthest row is at most twice as far from its nearest chosen one as in the best choice of ``count`` rows
    (Gonzalez 1985; Sener & Savarese, arXiv 1708.00489).

    Args:
        Z: ``(n, d)``.
        count: rows to choose, in [1, n].
    """
    squares = (Z - Z.mean(0)).square().sum(1)
    chosen = [_smallest(squares, squares.max())]
    nearest = torch.full((len(Z),), torch.inf, dtype=Z.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (Z - Z[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -torch.inf  # below the zero of a row that is the same as a chosen one
        chosen.append(_smallest(-nearest, squares.max()))
    return chosen


def herding(Z: Tensor, count: int) -> list[int]:
    r"""Herding (Welling 2009): each row brings the mean of the chosen as near to the mean of all as one row can.

    .. math:: j_t = \arg\min_j \Big\| \bar z - \frac{1}{t} \Big(z_j + \sum_{s < t} z_{j_s}\Big) \Big\|

    A choice of ``k`` rows is the beginning of a choice of more.

    Args:
        Z: ``(n, d)``.
        count: rows to choose, in [1, n].
    """
    offsets = Z - Z.mean(0)
    squares = offsets.square().sum(1)
    total, chosen = torch.zeros_like(Z[0]), list[int]()
    for _ in range(count):
        scores = squares + 2 * (offsets @ total)  # of |total + offset|^2 all that differs by row
        scores[chosen] = torch.inf
        chosen.append(_smallest(scores, squares.max() + total.square().sum()))
        total = total + offsets[chosen[-1]]
    return chosen


def k_medoids(Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """K-means, then the row nearest to each of its centres, the largest cluster's first.

    Lloyd's rounds from a k-means++ start until no row changes its cluster (100 at most); a cluster that loses all its
    rows keeps its centre. With one row to choose it is the one nearest to the mean. Holds ``O(n * count)`` numbers.

    Args:
        Z: ``(n, d)``.
        count: rows to choose, in [1, n].
        generator: a CPU generator, for the start.
    """
    Z = Z - Z.mean(0)  # products of far rows would round coarsely
    largest = Z.square().sum(1).max()
    centres = Z[_spread(Z, count, generator)] if count > 1 else Z.mean(0, keepdim=True)
    clusters = _nearest(Z, centres, largest)
    for _ in range(_ROUNDS):
        sizes = torch.bincount(clusters, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, clusters, Z)
        centres = torch.where(sizes[:, None] > 0, sums / sizes.clamp_min(1)[:, None], centres)
        before, clusters = clusters, _nearest(Z, centres, largest)
        if torch.equal(before, clusters):
            break
    order = torch.bincount(clusters, minlength=count).argsort(descending=True, stable=True)
    chosen: list[int] = []
    for centre in centres[order]:
        distances = (Z - centre).square().sum(1)
        distances[chosen] = torch.inf
        chosen.append(_smallest(distances, largest))
    return chosen


def _nearest(Z: Tensor, centres: Tensor, largest: Tensor) -> Tensor:
    """Which of the centres is nearest to each row, ``(n,)``; of equals the first."""
    squares = _squared_distances(Z, centres)
    equals = squares <= squares.amin(1, keepdim=True) + _SQUARES * largest
    return equals.to(torch.uint8).argmax(1)


def _spread(Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """Rows to start k-means from: each drawn with a chance that grows with its squared distance from those before."""
    chosen = [int(torch.randint(len(Z), (1,), generator=generator))]
    nearest = (Z - Z[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        left = nearest.clone()
        left[chosen] = 0
        if not float(left.sum()) > 0:  # all rows that are left are the same as chosen ones
            left = torch.ones_like(nearest)
            left[chosen] = 0
        chosen.append(int(torch.multinomial(left, 1, generator=generator)))
        nearest = torch.minimum(nearest, (Z - Z[chosen[-1]]).square().sum(1))
    return chosen


def facility_location(Z: Tensor, count: int, rows: int = ROWS) -> list[int]:
    r"""Facility location: the sum of all rows' distances to their nearest chosen row, made small greedily.

    Within ``1 - 1/e`` of the best gain, since gains only fall as rows are chosen; for the same reason only candidates
    whose last known gain could still be the largest are looked at again (lazy greedy, Minoux 1978; CRAIG, arXiv
    1906.01827). Before any row is chosen every row counts as twice as far as the one farthest from the mean. Holds
    blocks of ``rows * n`` distances.

    Args:
        Z: ``(n, d)``.
        count: rows to choose, in [1, n].
        rows: candidates looked at together; decides memory and nothing else.
    """
    offsets = Z - Z.mean(0)
    squares = offsets.square().sum(1)
    far, same = 2 * float(squares.max().sqrt()), _SQUARES * float(squares.max())
    nearest = torch.full((len(Z),), far, dtype=Z.dtype)
    gains = torch.full((len(Z),), torch.inf, dtype=Z.dtype)  # upper bounds, until looked at
    chosen: list[int] = []
    while len(chosen) < count:
        known = torch.zeros(len(Z), dtype=torch.bool)
        known[chosen] = True
        gains[chosen] = -torch.inf
        while True:
            top = float(gains.max())
            best = gains >= (top - _GAINS * (top + far) if math.isfinite(top) else top)
            if bool(known[best].all()):
                break
            promising = gains.masked_fill(known, -torch.inf).topk(min(rows, len(Z))).indices.sort().values
            promising = promising[~known[promising]]
            distances = _distances(_squared_distances(offsets[promising], offsets), same)
            distances[torch.arange(len(promising)), promising] = 0
            gains[promising] = (nearest - distances).clamp_min_(0).sum(1)
            known[promising] = True
        chosen.append(int(best.nonzero()[0]))
        own = (offsets - offsets[chosen[-1]]).square().sum(1)
        nearest = torch.minimum(nearest, _distances(own, same))
    return chosen


def _distances(squares: Tensor, same: float) -> Tensor:
    """Roots, in place, of squared distances; of rows that are the same rounding alone leaves some, below ``same``."""
    return squares.masked_fill_(squares < same, 0).sqrt_()


def _smallest(values: Tensor, largest: Tensor) -> int:
    """The lowest row whose value ``(n,)`` is the smallest, up to the rounding of squares up to ``largest``."""
    return int((values <= values.min() + _SQUARES * largest).nonzero()[0])


def _squared_distances(A: Tensor, B: Tensor) -> Tensor:
    """``(a, b)`` of ``(a, d)`` and ``(b, d)``, by products."""
    squares = A.square().sum(1)[:, None] + B.square().sum(1)
    return squares.addmm_(A, B.T, alpha=-2).clamp_min_(0)


class GreedyRidge:
    r"""A ridge probe that grows by one labelled row at a time, and what each candidate would do to its loss.

    The probe on chosen rows is :math:`W = Z^T (Z Z^T + \lambda I)^{-1} Y`, targets one-hot less ``1/C``. A new row
    ``z`` with target ``y`` adds :math:`p e^T` to it, where :math:`p = P z`,
    :math:`e = (y - W^T z) / (z^T p + \lambda)` and :math:`P = I - Z^T (Z Z^T + \lambda I)^{-1} Z`, which loses
    :math:`p p^T / (z^T p + \lambda)`. Held-out rows enter by their moments alone, so that a candidate costs
    ``O(d^2)`` however many there are.

    Args:
        gram: ``(d, d)``, ``Z^T Z`` of the held-out rows.
        cross: ``(d, C)``, ``Z^T Y`` of these with their targets.
        ridge: ``lambda > 0``.

    Attributes:
        weights: ``(d, C)``, the probe.
    """

    def __init__(self, gram: Tensor, cross: Tensor, ridge: float) -> None:
        self.gram, self.ridge = gram, ridge
        self.weights = torch.zeros_like(cross)
        self._left = cross.clone()  # cross less gram @ weights: the held-out residuals, seen by the features
        self._projector = torch.eye(len(gram), dtype=gram.dtype)

    def changes(self, Z: Tensor, label: int) -> Tensor:
        """By how much each of the rows ``Z (n, d)`` of a class would change the held-out squared error, ``(n,)``."""
        directions = Z @ self._projector
        steps = (self._target(label) - Z @ self.weights) / ((directions * Z).sum(1) + self.ridge)[:, None]
        linear = ((directions @ self._left) * steps).sum(1)
        return ((directions @ self.gram) * directions).sum(1) * steps.square().sum(1) - 2 * linear

    def add(self, z: Tensor, label: int) -> None:
        """Fit the row ``z (d,)`` of a class as well."""
        direction = self._projector @ z
        power = float(z @ direction) + self.ridge
        change = torch.outer(direction, (self._target(label) - z @ self.weights) / power)
        self.weights = self.weights + change
        self._left = self._left - self.gram @ change
        self._projector = self._projector - torch.outer(direction, direction) / power

    def _target(self, label: int) -> Tensor:
        target = torch.full_like(self.weights[0], -1.0 / self.weights.shape[1])
        target[label] += 1
        return target
