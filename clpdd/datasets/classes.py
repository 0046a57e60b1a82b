"""Which class a label stands for: names in their order, and labels that are words or leave numbers out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import DataError
from .listing import Labels, check_class_names, nearest

__all__ = ["number_gaps", "number_words", "ordered_names"]

log = logging.getLogger(__name__)


def ordered_names(found: list[str], wanted: Sequence[str] | None, what: str) -> tuple[list[str], dict[str, int]]:
    """Class names in the order of their labels, and the label of each name ``found`` in the data.

    Args:
        found: names in sorted order.
        wanted: ``dataset.class_names``: the same names in another order, or as many new ones in sorted order of the
            old.
        what: what holds the names found, for people: ``"image folder"``.
    """
    if wanted is None:
        return found, {name: label for label, name in enumerate(found)}
    wanted = check_class_names(wanted, "dataset.class_names")
    if set(wanted) == set(found):
        return wanted, {name: label for label, name in enumerate(wanted)}
    if len(wanted) != len(found) or set(wanted) & set(found):
        lacking = [name for name in found if name not in wanted]
        raise DataError(
            f"dataset.class_names has {len(wanted)} names and the {what} {len(found)} classes, and "
            f"{lacking[0] if lacking else wanted[-1]!r} is only in one of them: list the names of the {what} in the "
            f"order wanted, or as many new names as there are, in the sorted order of the old ones"
        )
    return wanted, {name: label for label, name in enumerate(found)}


def number_words(
    words: Mapping[str, Sequence[tuple[str, Sequence[str]]]], wanted: Sequence[str] | None, column: str
) -> tuple[list[str], dict[str, list[Labels]]]:
    """Labels of words: the sorted words of the training images are the classes.

    Args:
        words: split -> ``(file, its labels)``; ``"train"`` is there.
        wanted: ``dataset.class_names``, as in ``ordered_names``.
        column: the labels' column, for people.

    Returns:
        Names of the classes, and split -> labels of each file.

    Raises:
        DataError: a word of another split that no training image has.
    """
    found = sorted({word for _, own in words["train"] for word in own})
    names, label_of = ordered_names(check_class_names(found, f"column {column!r}"), wanted, f"column {column!r}")
    numbered: dict[str, list[Labels]] = {}
    for split, files in words.items():
        numbered[split] = []
        for file, own in files:
            strange = next((row for row, word in enumerate(own) if word not in label_of), None)
            if strange is not None:
                raise DataError(
                    f"{file}, row {strange} (counted from 0): column {column!r} is {own[strange]!r}, which no training "
                    f"image has{nearest(own[strange], found)}"
                )
            numbered[split].append(np.asarray([label_of[word] for word in own], dtype=np.int64))
    log.info(
        "column %r holds words: %s are the classes", column, _told([f"{names[k]!r} = {k}" for k in range(len(names))])
    )
    return names, numbered


def number_gaps(labels: Sequence[Labels], wanted: Sequence[str] | None, column: str) -> dict[int, int] | None:
    """Training labels that leave numbers out -> those without a gap, in ascending order; ``None`` where none does.

    With ``wanted`` names (``dataset.class_names``) only labels that these cannot stand for by their position are
    renumbered, and only where there are as many of them as names.
    """
    present = np.unique(np.concatenate([*labels, np.empty(0, np.int64)]))
    if not len(present) or present[0] < 0 or present[-1] == len(present) - 1:
        return None
    if wanted is not None and (len(wanted) != len(present) or present[-1] < len(wanted)):
        return None
    log.warning(
        "column %r leaves numbers out: %s are taken as the classes 0 to %d%s",
        column,
        _told([str(label) for label in present]),
        len(present) - 1,
        "" if wanted is not None else ", and called by their numbers",
    )
    return {int(label): number for number, label in enumerate(present)}


def _told(words: list[str]) -> str:
    return ", ".join(words[:5]) + (f", ... {words[-1]}" if len(words) > 5 else "")
