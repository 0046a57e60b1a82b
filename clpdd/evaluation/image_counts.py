"""How many real images per class an accuracy is worth, read off a few-shot curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["worth_on"]


def worth_on(curve: Sequence[tuple[int, float]], top1: float) -> str:
    """How many images per class the curve needs for ``top1``: ``"<1"``, a number between two counts, or ``">50"``.

    The first count at which the curve reaches ``top1`` is meant, wherever it goes from there; between two counts it
    lies on a straight line over the logarithm of the count.
    """
    if top1 <= curve[0][1]:
        return f"<{curve[0][0]}" if top1 < curve[0][1] else f"{curve[0][0]:.1f}"
    for (few, low), (many, high) in pairwise(curve):
        if low < top1 <= high:
            return f"{math.exp(math.log(few) + (top1 - low) / (high - low) * math.log(many / few)):.1f}"
    return f">{curve[-1][0]}"
