"""What every method is given and what it returns: a new method is one new file and one line in the registry."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import DistillSettings, RuntimeSettings
from ..datasets import Index
from ..distilled import DistilledSet
from ..encoders import Encoder
from ..errors import SettingsError
from ..features import FeatureStore
from ..kernels import Kernels
from ..labels import mean_predictions
from ..ranks import ALONE, Ranks

__all__ = ["Context", "Method", "OnProgress", "Snapshot", "real_images"]


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


OnProgress = Callable[[int, dict[str, float]], None]
"""Called with a step and its readings (``loss``, ``validation_top1``), also for the steps of a restored history."""


@dataclass(frozen=True)
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
    random_draws: int = 1
    on_progress: OnProgress | None = None
    snapshots: Container[int] = ()  # steps whose images ``on_snapshot`` is shown
    on_snapshot: Callable[[Snapshot], None] | None = None
    budget: float | None = None  # seconds of steps at which ``on_snapshot`` ends it; what is left of them is told
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    source: DistilledSet | None = None  # for the method ``neighbor``: what the images are to be near to
    ranks: Ranks = ALONE  # this process among those that optimise together

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
        probe, store = self.kernels, self.train
        soft = mean_predictions(probe.weights, probe.bias, store.features(), store.labels, self.settings.temperature)
        return soft[self.labels]


class Method(Protocol):
    """A way to make a distilled dataset."""

    @property
    def name(self) -> str:
        """What ``methods`` in the settings calls it."""

    @property
    def settings_used(self) -> tuple[str, ...] | None:
        """Fields of ``DistillSettings`` that decide the result; ``None`` means all."""

    def __call__(self, context: Context) -> DistilledSet:
        """The distilled set. Over ranks, those that are not the first return something that is not used."""


def real_images(context: Context, rows: list[int]) -> Tensor:
    """Training images ``(len(rows), 3, size, size)`` uint8, resized and centre-cropped as the encoder asks for."""
    transform = context.encoder.transform
    pictures = torch.stack([transform(context.index.image(row)) for row in rows])
    if context.size == context.encoder.size:
        return pictures
    wanted = (context.size, context.size)
    resized = torch.nn.functional.interpolate(pictures.float(), wanted, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def nearest_rows(context: Context) -> list[int]:
    """Rows of the training images nearest to each class mean, class by class, as many as a class is to have.

    Raises ``SettingsError`` when a class has fewer images, or fewer were kept by the kernel stage.
    """
    nearest = context.kernels.nearest
    rows: list[int] = []
    for label, (ipc, have) in enumerate(zip(context.per_class, (nearest >= 0).sum(1).tolist(), strict=True)):
        if ipc > have:
            raise SettingsError(
                f"distill.images_per_class is {ipc} for class {context.index.class_names[label]!r}, but only {have} "
                f"central images of it are known: lower it, or raise kernels.nearest (now {nearest.shape[1]}) if the "
                f"classes are large enough"
            )
        rows += nearest[label, :ipc].tolist()
    return rows
