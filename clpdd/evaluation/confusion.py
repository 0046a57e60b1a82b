"""Which class was taken for which, as JSON values whose size follows the images and not the square of the classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Confusion", "entries", "json_form", "totals"]

Confusion = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
"""``C`` rows (the true class) of ``C`` counts; or, of many classes, the lists ``true``, ``predicted`` and ``count`` of
the pairs that occur, sorted."""

_IN_FULL = 200  # most classes whose matrix is written out


def json_form(true: Sequence[int], predicted: Sequence[int], count: Sequence[int], classes: int) -> Confusion:
    """The form for so many classes, of the pairs that occur."""
    if classes > _IN_FULL:
        return {"true": true, "predicted": predicted, "count": count}
    matrix = [[0] * classes for _ in range(classes)]
    for i, j, number in zip(true, predicted, count, strict=True):
        matrix[i][j] = number
    return matrix


def entries(confusion: Confusion) -> Iterator[tuple[int, int, int]]:
    """True class, the class it was taken for and how often, of the pairs that occur, in the order of the rows."""
    if isinstance(confusion, Mapping):
        yield from zip(confusion["true"], confusion["predicted"], confusion["count"], strict=True)
        return
    for i, row in enumerate(confusion):
        yield from ((i, j, number) for j, number in enumerate(row) if number)


def totals(confusion: Confusion, classes: int) -> list[int]:
    """How often every class was there to be recognised."""
    found = [0] * classes
    for i, _, number in entries(confusion):
        found[i] += number
    return found
