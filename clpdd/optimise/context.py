"""What every method is given and what it returns: a new method is one new file and one entry of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config.distill import DistillSettings
from ..config.runtime import RuntimeSettings
from ..datasets.index import Index
from ..distilled.dataset import DistilledSet
from ..distributed.group import ALONE, Ranks
from ..encoders.encoder import Encoder
from ..features.kernels import Kernels
from ..features.store import FeatureStore
from ..functional.targets import mean_predictions

__all__ = ["SILENT", "Context", "Method", "OnProgress", "Snapshot", "Spent", "Watch"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Images on the way: ``(n, 3, s, s)`` uint8 after ``step`` steps that took ``seconds`` of wall clock.

    The seconds are those of the optimisation steps alone (no validation, previews or checkpoints), summed over the
    attempts of a killed run. ``forward`` and ``backward`` are the images that the steps sent through the encoder.
    """

    step: int
    seconds: float
    images: Tensor
    forward: int = 0
    backward: int = 0
    soft_labels: Tensor | None = None
    """``(n, C)`` float32 where labels are not hard."""


@dataclass(frozen=True)
class Spent:
    """What was spent before the first step: seconds of steps, images sent through the encoder forward and backward."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0


OnProgress = Callable[[int, dict[str, float]], None]
"""Called with a step and its readings (``loss``, ``validation_top1``), also for the steps of a restored history."""


@dataclass(frozen=True)
class Watch:
    """Who is shown a distillation on its way.

    Attributes:
        on_progress: called with a step and its readings.
        snapshots: steps (0 is the start) whose images ``on_snapshot`` is shown as they are reached.
        on_snapshot: called with a ``Snapshot``.
        budget: seconds of steps at which ``on_snapshot`` ends the run: told instead of the steps that are left.
    """

    on_progress: OnProgress | None = None
    snapshots: Container[int] = ()
    on_snapshot: Callable[[Snapshot], None] | None = None
    budget: float | None = None


SILENT = Watch()
"""Nobody watches."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Everything a method may use. There is nothing of the test split in it."""

    settings: DistillSettings
    seed: int
    encoder: Encoder
    index: Index  # of the training split
    train: FeatureStore
    validation: FeatureStore
    kernels: Kernels
    work: Path  # the method's private folder: partial work of an earlier, killed attempt may lie there
    record: dict[str, Any] = field(default_factory=dict)  # goes into the artifact
    watch: Watch = SILENT
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    source: DistilledSet | None = None  # the set of the method that the entry's ``source`` names
    ranks: Ranks = ALONE  # this process among those that optimise together
    spent: Spent = Spent()  # on a search for settings, counted with the steps

    @property
    def size(self) -> int:
        """Side of the synthetic images in pixels."""
        return self.settings.image_size or self.encoder.size

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return len(self.index.class_names)

    @property
    def labels(self) -> Tensor:
        """``(n,)`` int64: 0, ..., 0, 1, ..., 1, ..., every class as often as it has images."""
        return torch.arange(self.classes).repeat_interleave(torch.tensor(self.per_class))

    @property
    def per_class(self) -> list[int]:
        """Images of every class."""
        return self.settings.per_class(self.index.class_names)

    @property
    def rows(self) -> range:
        """Numbers of the images that this rank optimises."""
        return self.ranks.span(sum(self.per_class))

    @cached_property
    def soft_labels(self) -> Tensor | None:
        """``(n, C)`` float32: what the full-data probe takes an image's class for, where ``labels`` asks for it."""
        if self.settings.labels != "probe":
            return None
        probe, store, temperature = self.kernels, self.train, self.settings.number("temperature")
        soft = mean_predictions(probe.weights, probe.bias, store.features(), store.labels, temperature)
        return soft[self.labels]


class Method(Protocol):
    """A way to make a distilled dataset."""

    @property
    def name(self) -> str:
        """What ``methods`` in the settings calls it."""

    def __call__(self, context: Context) -> DistilledSet:
        """The distilled set. Over ranks, those that are not the first return something that is not used."""
