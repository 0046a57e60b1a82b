"""Which class a label stands for: names in their order, and labels that are words or leave numbers out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..config.dataset import DatasetSettings
from ..errors import DataError
from .listing import Labels, Source, check_class_names, nearest

__all__ = [
    "check_classes",
    "number_gaps",
    "number_labels",
    "number_words",
    "ordered_names",
    "refuse_empty_classes",
    "refuse_single_class",
    "renumbered",
    "unlabelled",
]

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


def number_labels(
    values: Mapping[str, Sequence[tuple[str, Sequence[Any]]]], wanted: Sequence[str] | None, column: str
) -> tuple[list[str], dict[str, list[Labels]]]:
    """Names of the classes and labels from 0 on, of values that are whole numbers, words or truth values.

    Args and returns as in ``number_words`` and ``number_gaps``; numbers without names are called by themselves.

    Raises:
        DataError: values of another kind or of several, or one of another split that no training image has.
    """
    every = [(file, row, value) for own in values.values() for file, held in own for row, value in enumerate(held)]
    for file, row, value in every:
        if not isinstance(value, (str, bool, int, float)) or (isinstance(value, float) and not value.is_integer()):
            raise DataError(
                f"{file}, row {row} (counted from 0): column {column!r} is {value!r}, but labels must be whole numbers "
                f"or words, one of them an image"
            )
    worded = {isinstance(value, (str, bool)) for _, _, value in every}
    if len(worded) > 1:
        raise DataError(f"column {column!r} holds words and numbers: write its labels alike")
    if worded == {True}:
        words = {
            split: [(file, [v if isinstance(v, str) else str(v).lower() for v in held]) for file, held in own]
            for split, own in values.items()
        }
        return number_words(words, wanted, column)
    try:
        labels = {s: [np.asarray([int(v) for v in held], np.int64) for _, held in own] for s, own in values.items()}
    except OverflowError:
        raise DataError(f"column {column!r} holds a label beyond 64-bit integers") from None
    numbers = number_gaps(labels["train"], wanted, column)
    if numbers is not None:
        for split, own in values.items():
            labels[split] = [
                renumbered(found, numbers, file, column) for (file, _), found in zip(own, labels[split], strict=True)
            ]
    present = np.concatenate([*labels["train"], np.empty(0, np.int64)])
    own_names = list(numbers) if numbers is not None else range(int(present.max(initial=-1)) + 1)
    return check_class_names(wanted or [str(label) for label in own_names], "dataset.class_names"), labels


def renumbered(labels: Labels, numbers: Mapping[int, int], file: str, column: str) -> Labels:
    """``labels`` by ``numbers``. Raises ``DataError`` for one that is not among them."""
    held = labels.tolist()
    strange = next((row for row, label in enumerate(held) if label not in numbers), None)
    if strange is not None:
        raise DataError(
            f"{file}, row {strange} (counted from 0): column {column!r} is {held[strange]}, which no training image has"
            f"{unlabelled(held[strange])}"
        )
    return np.asarray([numbers[label] for label in held], dtype=np.int64)


def unlabelled(label: int) -> str:
    """What to add where a label says that there is none."""
    return "; -1 marks a split published without labels: choose another" if label == -1 else ""


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


# -- classes without images --------------------------------------------------------------------------------------------


def refuse_single_class(names: list[str]) -> None:
    """Raise ``DataError`` unless there are two classes."""
    if len(names) < 2:
        told = f"one class only ({names[0]})" if names else "no classes"
        raise DataError(f"the dataset has {told}: a probe needs at least two")


def check_classes(source: Source, settings: DatasetSettings) -> Source:
    """The source, without the classes that no image has where the settings say so."""
    if settings.empty_classes == "drop":
        source = _without_empty_classes(source)
    refuse_single_class(source.class_names)
    present = np.bincount(source.listings["train"].labels, minlength=len(source.class_names))
    advice = "Add images, or leave out classes that no image of any split has: dataset.empty_classes: drop"
    refuse_empty_classes(present, source.class_names, "among the training images", advice)
    return source


def _without_empty_classes(source: Source) -> Source:
    every = np.concatenate([listing.labels for listing in source.listings.values()])
    counts = np.bincount(every, minlength=len(source.class_names))
    kept = np.flatnonzero(counts)
    if len(kept) == len(source.class_names):
        return source
    gone = [name for label, name in enumerate(source.class_names) if not counts[label]]
    log.warning("classes without any image, left out: %d, e.g. %s", len(gone), gone[0])
    number = np.full(len(source.class_names), -1, np.int64)
    number[kept] = np.arange(len(kept))
    for listing in source.listings.values():
        listing.labels = number[listing.labels]
    return Source(source.name, [source.class_names[label] for label in kept], source.listings)


def refuse_empty_classes(counts: Labels, names: list[str], where: str, advice: str) -> None:
    """Raise ``DataError`` where ``counts`` of a class is 0; ``where`` says of what, ``advice`` what to do."""
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        told = ", ".join(f"{names[label]!r} (label {label})" for label in empty[:5])
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no image {where}: {told}"
            f"{', ...' if len(empty) > 5 else ''}. {advice}"
        )
