"""Images of equal bytes, within a split and across splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..storage.layout import SPLITS

__all__ = ["Duplicates"]

_LISTED = 100  # pairs under two classes that the summary names


@dataclass(frozen=True)
class _Known:
    split: str
    keys: NDArray[np.uint64]  # the first 8 bytes of every digest: what is equal there is looked at closely
    digests: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: Callable[[int], str]


@dataclass
class Duplicates:
    """Equal bytes across splits, met in the order test, validation, train; 48 bytes of memory an image."""

    policy: str
    across: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    within: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    contradictory: int = 0  # images whose equal is of another class
    pairs: list[list[str]] = field(default_factory=list)  # the first of them, each with its equal
    _known: list[_Known] = field(default_factory=list)

    def sift(
        self, split: str, digests: NDArray[np.uint8], labels: NDArray[np.int64], name: Callable[[int], str]
    ) -> NDArray[np.bool_]:
        """Which images of a split stay in it, ``(n,)``.

        Args:
            digests: ``(n, 32)`` uint8.
            labels: classes ``(n,)``.
            name: position -> id of the image.

        Raises:
            DataError: the split shares images with a later one and must not.
        """
        keys = np.ascontiguousarray(digests[:, :8]).view(np.uint64).reshape(-1)
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        suspect = counts[inverse] > 1
        for known in self._known:
            suspect |= np.isin(keys, known.keys)
        seen: dict[bytes, tuple[str, str, int]] = {}
        for known in self._known:
            for row in np.flatnonzero(np.isin(known.keys, keys[suspect])).tolist():
                first = known.split, known.name(row), int(known.labels[row])
                seen.setdefault(known.digests[row].tobytes(), first)
        stays, examples = np.ones(len(keys), np.bool_), []
        for row in np.flatnonzero(suspect).tolist():
            own, label = name(row), int(labels[row])
            other, other_name, other_label = seen.setdefault(digests[row].tobytes(), (split, own, label))
            if label != other_label:
                self.contradictory += 1
                self.pairs += [[own, other_name]] if len(self.pairs) < _LISTED else []
            if other == split:
                self.within[split] += other_name != own
                continue
            self.across[split] += 1
            examples.append(f"{own} is {other_name} of {other}")
            stays[row] = self.policy != "drop"
        self._known.append(_Known(split, keys, digests, labels, name))
        self._refuse(split, examples[:3])
        return stays

    def _refuse(self, split: str, examples: list[str]) -> None:
        if self.across[split] and self.policy == "error":
            raise DataError(
                f"{self.across[split]} of the images for {split} are also in a later split "
                f"({'; '.join(examples)}), so that scores would be too good. "
                f"Remove them, or set dataset.duplicates: drop to leave them out of "
                f"{split}, or allow to keep them in both"
            )

    def summary(self) -> dict[str, Any]:
        """Counts per split: shared with a later split (dropped or kept, by the policy), and repeated within it.

        ``two_classes`` holds how many images are also there under another class, and the first pairs of names.
        """
        contradictory = {"images": self.contradictory, "pairs": self.pairs}
        return {
            "policy": self.policy,
            "across_splits": self.across,
            "within_split": self.within,
            "two_classes": contradictory,
        }
