"""What a classifier took images for, where the folders they lie in name their classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..runtime.tables import aligned

__all__ = ["class_of", "confusion_in_words"]

_WHOLE = 12  # classes up to which the whole table is shown
_LISTED = 10  # mistakes listed where there are more classes


def class_of(path: Path, roots: Iterable[Path], class_names: Sequence[str]) -> str | None:
    """The class that the nearest folder of ``path`` names, at or below one of ``roots``; ``None`` where none does."""
    known = set(class_names)
    for root in roots:
        if root.is_dir() and path.is_relative_to(root):
            for name in (*reversed(path.relative_to(root).parent.parts), root.resolve().name):
                if name in known:
                    return name
    return None


def confusion_in_words(pairs: Sequence[tuple[str, str]], others: int, class_names: Sequence[str]) -> str:
    """Accuracy, and what was taken for what.

    Args:
        pairs: (true class, class it was taken for) of every image whose folder names its class; at least one.
        others: images whose folders name none.
        class_names: of the classifier, in the order of the table.

    Returns:
        A line with the accuracy and, of up to 12 classes, the table of counts (rows: the true class); of more, the
        most frequent mistakes.
    """
    right = sum(true == found for true, found in pairs)
    rest = f"; {others} others lie in no such folder" if others else ""
    head = f"accuracy: {right} of {len(pairs)} images in folders named after a class ({100 * right / len(pairs):.1f} %)"
    rest += "; images that the set was distilled from count too, if they are among these"
    counts = Counter(pairs)
    if len(class_names) > _WHOLE:
        mistakes = Counter({pair: count for pair, count in counts.items() if pair[0] != pair[1]})
        lines = [f"  {true} taken for {found}: {count}" for (true, found), count in mistakes.most_common(_LISTED)]
        return "\n".join([head + rest, *lines])
    seen = [name for name in class_names if any(name in pair for pair in counts)]
    cells = [["true \\ taken for", *seen]]
    cells += [[true, *(str(counts[true, name]) for name in seen)] for true in seen if any(true == t for t, _ in counts)]
    return "\n".join([head + rest, aligned(cells, left=1)])
