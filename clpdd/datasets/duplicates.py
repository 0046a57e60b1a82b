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


@dataclass(frozen=True)
class _Known:
    split: str
    keys: NDArray[np.uint64]  # the first 8 bytes of every digest: what is equal there is looked at closely
    digests: NDArray[np.uint8]
    name: Callable[[int], str]


@dataclass
class Duplicates:
    """Equal bytes across splits, met in the order test, validation, train; 40 bytes of memory an image."""

    policy: str
    across: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    within: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    _known: list[_Known] = field(default_factory=list)

    def sift(self, split: str, digests: NDArray[np.uint8], name: Callable[[int], str]) -> NDArray[np.bool_]:
        """Which images of a split stay in it, ``(n,)``.

        Args:
            digests: ``(n, 32)`` uint8.
            name: position -> id of the image.

        Raises:
            DataError: the split shares images with a later one and must not.
        """
        keys = np.ascontiguousarray(digests[:, :8]).view(np.uint64).reshape(-1)
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        suspect = counts[inverse] > 1
        for known in self._known:
            suspect |= np.isin(keys, known.keys)
        seen: dict[bytes, tuple[str, str]] = {}
        for known in self._known:
            for row in np.flatnonzero(np.isin(known.keys, keys[suspect])).tolist():
                seen.setdefault(known.digests[row].tobytes(), (known.split, known.name(row)))
        stays, examples = np.ones(len(keys), np.bool_), []
        for row in np.flatnonzero(suspect).tolist():
            own = name(row)
            other, other_name = seen.setdefault(digests[row].tobytes(), (split, own))
            if other == split:
                self.within[split] += other_name != own
                continue
            self.across[split] += 1
            examples.append(f"{own} is {other_name} of {other}")
            stays[row] = self.policy != "drop"
        self._known.append(_Known(split, keys, digests, name))
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
        """Counts per split: shared with a later split (dropped or kept, by the policy), and repeated within it."""
        return {"policy": self.policy, "across_splits": self.across, "within_split": self.within}
