"""What may go wrong with a stage, by whether running it again can change that."""

from __future__ import annotations

import signal
from collections.abc import Sequence

__all__ = [
    "ProjectError",
    "StageBusy",
    "StageError",
    "StageInterrupted",
    "StageRefused",
    "StageStarved",
    "stage_error",
]

_PREEMPTED = 75
_INTERRUPTIONS = {signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


class ProjectError(Exception):
    """The project cannot be run as it is: no ``dvc.yaml``, unknown target, no remote to push to."""


class StageError(Exception):
    """A stage did not succeed. Carries the last lines it wrote."""

    def __init__(self, stage: str, code: int, reason: str, tail: Sequence[str] = ()) -> None:
        self.stage, self.code, self.reason, self.tail = stage, code, reason, list(tail)
        said = "\n".join(self.tail)
        super().__init__(f"{stage} {reason} (exit code {code})" + (f":\n{said}" if said else ""))

    def __reduce__(self) -> tuple[type[StageError], tuple[str, int, str, list[str]]]:
        return type(self), (self.stage, self.code, self.reason, self.tail)  # Dask sends it between processes


class StageInterrupted(StageError):
    """Preempted or killed: run again, the stage resumes."""


class StageBusy(StageError):
    """Another run holds the stage's work folder: wait and run again."""


class StageStarved(StageError):
    """The machine refused (disk, memory, device): the same may succeed later or elsewhere."""


class StageRefused(StageError):
    """Wrong settings, bad data, damaged artifact, not finite, or a defect: running it again changes nothing."""


def stage_error(stage: str, code: int, tail: Sequence[str]) -> StageError:
    """The error for an exit code of a stage's command (``clpdd.errors`` documents its own)."""
    known: dict[int, tuple[type[StageError], str]] = {
        2: (StageRefused, "refused its settings"),
        3: (StageRefused, "cannot use the data"),
        4: (StageRefused, "found an artifact missing or damaged"),
        5: (StageStarved, "was refused by the machine"),
        6: (StageRefused, "left the finite numbers"),
        7: (StageBusy, "is already being run by another process"),
        _PREEMPTED: (StageInterrupted, "was preempted and has saved its state"),
    }
    ended_by = code - 128
    if ended_by in _INTERRUPTIONS:
        return StageInterrupted(stage, code, f"was ended by {signal.Signals(ended_by).name}", tail)
    kind, reason = known.get(code, (StageRefused, "failed"))
    return kind(stage, code, reason, tail)
