"""What methods that optimise images share: how a step is taken, and the score on validation features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..distributed.group import Ranks
from ..encoders.calling import batch_that_fits, encoder_call
from ..errors import remedied
from ..features.store import FeatureStore
from ..functional import image_gradient as engine
from ..functional.image_gradient import ChunkT, Images, StepResult, Views
from ..functional.ridge import solve
from ..functional.targets import Targets, as_targets
from ..optimise.context import Context
from ..optimise.real_features import Excerpt, RealFeatures
from ..optimise.sharding import joined, own_rows
from ..storage.files import read_json, write_json

__all__ = ["REAL_ROWS", "FeatureProblem"]

_VALIDATION_VIEWS = 8
REAL_ROWS = 8192
"""Real features that are scored at once."""


class FeatureProblem:
    """A loss of the features of augmented views, and how a step along its gradient is taken.

    Use as a context manager, or call ``close``.

    Attributes:
        parts: columns of the features that have a loss of their own; ``loss`` is their average by the shares.
        ranks: this process among those that take the step together, each for the images of its ``rows``.
        promised: device bytes to leave free; set it before ``batch`` is read, which measures what fits.
        targets: what the images stand for.
        encode: pixels ``(b, 3, s, s)`` in [0, 1] to features ``(b, d)`` float32.
    """

    def __init__(self, context: Context) -> None:
        self.settings, self.seed, self.encoder = context.settings, context.seed, context.encoder
        self.parts = context.encoder.parts
        self.ranks, self.rows = context.ranks, context.rows
        self.device = context.encoder.mean.device
        self.classes = context.classes
        self.labels = context.labels.to(self.device)
        soft = as_targets(context.labels, self.classes) if context.soft_labels is None else context.soft_labels
        self.targets = Targets(soft.to(self.device), context.settings.labels == "learned")
        self.mean = context.kernels.mean.to(self.device) * (context.settings.centre == "real")
        self.encode = encoder_call(self.encoder, self.settings.precision, self.settings.compile)
        self.promised = 0
        self._batch_note = context.work / "encoder_batch.json"
        self._where = context.runtime.features
        self.validation, self._validated = self.features_of(context.validation), len(context.validation)

    def close(self) -> None:
        """End the threads that read ahead."""
        self.validation.close()

    def features_of(self, store: FeatureStore) -> RealFeatures:
        """This rank's part of a store."""
        own = store if self.ranks.size == 1 else Excerpt(store, own_rows(store, self.ranks))
        return RealFeatures(own, self.device, self.mean, self._where, self.ranks.local_size)

    @cached_property
    def batch(self) -> int:
        """Views in a pass of the encoder; where it is measured, by what features and images have left of the memory."""
        return self.settings.encoder_batch or _remembered_batch(
            self._batch_note, lambda: batch_that_fits(self.encoder, self.settings.precision, self.promised), self.ranks
        )

    @abstractmethod
    def loss(self, Z: Tensor, step: int) -> Tensor:
        """Loss at features ``Z (views * n, d)`` of all images' views, differentiable in them; the same on all ranks."""

    def views(self, step: int) -> Views:
        """The views of a step: a function of (seed, step)."""
        settings = self.settings
        augment = settings.augment if settings.augment.active else None
        count = settings.augmentations if augment is not None else 1
        return Views(len(self.labels), count, self.encoder.size, augment, self.seed, ("augment", step), self.device)

    def step(self, images: Images[ChunkT], step: int, update: Callable[[ChunkT, Sequence[Tensor]], None]) -> StepResult:
        """Hand the gradient of the loss with respect to the parameters of ``images`` to ``update``, chunk by chunk.

        That with respect to learned labels is noted by ``targets``: it needs no more than the graph above the features.
        """
        finite: list[Tensor] = []

        def loss(Z: Tensor) -> Tensor:
            value = self.loss(joined(self.ranks, Z, len(self.labels)), step)
            if self.targets.learned:
                finite.append(self.targets.note(value))
            return value

        outcome = engine.step(self.encode, images, self.views(step), loss, self.batch, update)
        return replace(outcome, finite=outcome.finite & finite[0]) if finite else outcome

    @property
    def cost(self) -> tuple[int, int]:
        """Images that one step sends through the encoder, forward and backward."""
        count = self.views(0).count
        views = [len(self.ranks.span(len(self.labels), rank)) * count for rank in range(self.ranks.size)]
        return sum(some * (1 if some <= self.batch else 2) for some in views), sum(views)

    def probe(self, Z: Tensor) -> Tensor:
        """The ridge probe ``W (d, C)`` solved on features ``Z (views * n, d)``, centred by the real mean.

        Of several parts each has a probe of its own: its rows of ``W``.
        """
        Y = (self.targets.probabilities - 1.0 / self.classes).repeat(len(Z) // len(self.labels), 1)
        centred = Z - self.mean
        with remedied(
            singular="raise distill.ridge, e.g. to 1e-3",
            infinite="lower distill.learning_rate, or check that the encoder is finite on these images",
        ):
            return torch.cat([solve(centred[:, part.columns], Y, self.settings.ridge) for part in self.parts])

    @torch.no_grad()
    def validate(self, pictures: Tensor) -> float:
        """Top-1 in percent on the validation features of the probe solved on fixed, noise-free views.

        Of several parts it is their average by the shares. ``pictures``: the images of ``rows``,
        ``(len(rows), 3, s, s)`` uint8, on any device.
        """
        augment = self.settings.augment.without_noise()
        fixed = (augment, _VALIDATION_VIEWS) if augment.active else (None, 1)
        total = len(self.labels)
        views = Views(total, fixed[1], self.encoder.size, fixed[0], self.seed, ("validate",), self.device)
        images = _Pictures(pictures, self.rows.start, self.device)
        W = self.probe(joined(self.ranks, engine.features(self.encode, images, views, self.batch), total))
        hits = torch.zeros(len(self.parts), dtype=torch.int64, device=self.device)
        for Z, labels in self.validation.blocks(REAL_ROWS):
            logits = [Z[:, part.columns] @ W[part.columns] for part in self.parts]
            hits += torch.stack([(own.argmax(1) == labels).sum() for own in logits])
        (hits,) = self.ranks.all_reduce(hits)
        scores = [100 * float(hit) / self._validated for hit in hits]
        return sum(part.share * score for part, score in zip(self.parts, scores, strict=True))


def _remembered_batch(note: Path, measure: Callable[[], int], ranks: Ranks) -> int:
    """What was measured when the work began: the memory that is free later must not change a resumed run.

    Over ranks it is the least of what they measured.
    """
    if ranks.broadcast_object(not note.exists()):
        fits = min(ranks.all_gather_object(measure()))
        if ranks.is_main:
            write_json(note, fits)
    return int(ranks.broadcast_object(read_json(note) if ranks.is_main else None))


@dataclass(frozen=True)
class _Picture:
    rows: range
    levels: list[Tensor]


@dataclass(frozen=True)
class _Pictures:
    """Finished images, numbered from ``first`` on, as the engine takes them: nothing but pixels."""

    pixels: Tensor
    first: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.pixels)

    def chunks(self, size: int, update: bool = False) -> Iterator[_Picture]:
        for start in range(0, len(self), size):
            part = self.pixels[start : start + size]
            yield _Picture(range(self.first + start, self.first + start + len(part)), [part])

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        return levels[0].to(self.device, non_blocking=True).float() / 255
