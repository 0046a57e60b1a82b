"""Points of a distillation on disk: its images after some steps, whole or not at all."""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from pathlib import Path

import safetensors
from safetensors import safe_open
from safetensors.torch import save

from ..errors import ArtifactError
from ..optimise.context import Snapshot
from ..storage.files import write_bytes

__all__ = ["BudgetSpent", "Track", "read_track"]


class BudgetSpent(Exception):
    """The clock has reached the last mark: the distillation is to end here."""


class Track:
    """Keeps the snapshots of a distillation in a folder; an earlier, killed attempt's are continued.

    Args:
        folder: where they go.
        seconds: marks on the distillation's clock in rising order. The first snapshot at or after each is kept, and
            the one at the last mark raises ``BudgetSpent``. Empty: every snapshot shown is kept.
    """

    def __init__(self, folder: Path, seconds: Sequence[float] = ()) -> None:
        self.folder, self.marks = folder, list(seconds)
        self._reached: float | None = None  # seconds of the newest kept snapshot

    def __call__(self, snapshot: Snapshot) -> None:
        if self._reached is None:
            self._reached = self._continue_before(snapshot.step)
        if not self._due(snapshot):
            return
        self._reached = snapshot.seconds
        facts = {key: getattr(snapshot, key) for key in ("step", "seconds", "forward", "backward")}
        tensors = {"images": snapshot.images.contiguous()}
        if snapshot.soft_labels is not None:
            tensors["soft_labels"] = snapshot.soft_labels.contiguous()
        data = save(tensors, metadata={"snapshot": json.dumps(facts)})
        write_bytes(self.folder / f"{snapshot.step:09d}.safetensors", data)
        if self.marks and snapshot.seconds >= self.marks[-1]:
            raise BudgetSpent

    def _due(self, snapshot: Snapshot) -> bool:
        if not self.marks or snapshot.step == 0:
            return True
        assert self._reached is not None
        passed = bisect.bisect_right(self.marks, self._reached)
        return passed < len(self.marks) and snapshot.seconds >= self.marks[passed]

    def _continue_before(self, step: int) -> float:
        """Drop what the killed attempt had beyond the step it is continued at; seconds of the last that stays."""
        reached = 0.0
        for old in read_track(self.folder) if self.folder.is_dir() else []:
            if old.step >= step:
                (self.folder / f"{old.step:09d}.safetensors").unlink()
            else:
                reached = old.seconds
        return reached


def read_track(folder: Path) -> list[Snapshot]:
    """Snapshots in the order of their steps. Raises ``ArtifactError`` when one is damaged."""
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["snapshot"])
                names = file.keys()
                found.append(Snapshot(**{name: file.get_tensor(name) for name in names}, **facts))
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged ({error}): delete {folder.parent} and start again") from error
    return found
