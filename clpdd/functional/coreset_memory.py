"""How many numbers the coresets of ``clpdd.functional.coresets`` hold at most beside the features they are given.

Each function takes ``n`` rows, ``d`` features and ``count`` rows to choose, and returns a number of float64 numbers
(8 bytes each), temporaries included.
"""

from __future__ import annotations

from .coresets import ROWS

__all__ = ["facility_location", "herding", "k_centre", "k_medoids", "ridge_greedy"]

_OF_EACH_ROW = 10  # vectors of one number for every row


def k_centre(n: int, d: int, count: int) -> int:
    """Differences to one row, and their squares."""
    return 2 * n * d + d + _OF_EACH_ROW * n


def herding(n: int, d: int, count: int) -> int:
    """Offsets from the mean, and their squares."""
    return 2 * n * d + 4 * d + _OF_EACH_ROW * n


def k_medoids(n: int, d: int, count: int) -> int:
    """Centred features, differences to one row and their squares; distances to all centres, compared byte by byte."""
    return 3 * n * d + (5 * n * count + 3) // 4 + 5 * count * d + _OF_EACH_ROW * n


def facility_location(n: int, d: int, count: int) -> int:
    """Offsets, differences to one row and their squares; two blocks of distances, one of them compared byte by byte."""
    rows = min(ROWS, n)
    return 3 * n * d + (17 * rows * n + 7) // 8 + 2 * rows * d + _OF_EACH_ROW * n


def ridge_greedy(n: int, d: int, classes: int) -> int:
    """What ``GreedyRidge.changes`` makes of ``n`` rows, beside its own matrices and their successors."""
    return 3 * n * d + 5 * n * classes + 5 * d * d + 6 * d * classes + _OF_EACH_ROW * n
