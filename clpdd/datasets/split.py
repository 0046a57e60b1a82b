"""Stratified, seeded choices of rows: which go to which split, and which stay when a split is limited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.layout import SPLITS

__all__ = ["limit", "stratify"]

Rows = NDArray[np.int64]


def _by_class(labels: Rows) -> Iterator[tuple[int, Rows]]:
    """``(class, positions in labels, ascending)`` for every class that occurs."""
    if not len(labels):
        return
    order = np.argsort(labels, kind="stable")
    found, starts = np.unique(labels[order], return_index=True)
    for label, rows in zip(found, np.split(order, starts[1:]), strict=True):
        yield int(label), rows


def stratify(labels: Rows, shares: Mapping[str, float], seed: int, class_names: Sequence[str]) -> dict[str, Rows]:
    """Split rows into ``train`` and the named other splits, class by class.

    Each class gives ``round(n * share)`` of its ``n`` rows to each split of ``shares``, but at least one, and at
    least one stays for training. The choice within a class is a function of ``seed`` and the class alone.

    Args:
        labels: ``(N,)`` int64.
        shares: split -> share in (0, 1), of ``"validation"`` and ``"test"``.

    Returns:
        split -> ascending row numbers; the splits are disjoint and together hold every row.

    Raises:
        DataError: a class has fewer rows than there are splits.
    """
    needed = 1 + len(shares)
    parts: dict[str, list[Rows]] = {name: [np.empty(0, np.int64)] for name in ("train", *shares)}
    short: list[str] = []
    for label, rows in _by_class(labels):
        if len(rows) < needed:
            short.append(f"{class_names[label]!r} has {len(rows)}")
            continue
        rows = np.random.default_rng([seed, 0, label]).permutation(rows)
        left = len(rows)
        # The order is fixed, so that test images stay the same when validation is given or split off.
        for done, name in enumerate((name for name in reversed(SPLITS) if name in shares), start=1):
            wanted = max(1, int(len(rows) * shares[name] + 0.5))
            taken = min(wanted, left - (needed - done))
            parts[name].append(rows[left - taken : left])
            left -= taken
        parts["train"].append(rows[:left])
    if short:
        told = ", ".join(short[:5]) + (f" and {len(short) - 5} more classes" if len(short) > 5 else "")
        raise DataError(
            f"too few images to split: class {told}, but {needed} are needed, one for each of "
            f"{', '.join(name for name in SPLITS if name in parts)}. Add images, move the class out of there, or "
            f"name the splits in dataset.validation and dataset.test"
        )
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


def limit(labels: Rows, rows: Rows, count: int | None, seed: int, split: str) -> Rows:
    """At most ``count`` of ``rows`` per class, drawn at random (never the first ones), in ascending order.

    Args:
        labels: ``(N,)`` int64 of the whole source; ``rows`` points into it.
    """
    if count is None:
        return rows
    kept = [np.empty(0, np.int64)]
    for label, positions in _by_class(labels[rows]):
        if len(positions) > count:
            generator = np.random.default_rng([seed, 1 + SPLITS.index(split), label])
            positions = generator.choice(positions, count, replace=False)
        kept.append(rows[positions])
    return np.sort(np.concatenate(kept))
