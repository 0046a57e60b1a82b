"""What methods that optimise images share: how a step is taken, and the score on validation features."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..encoders.calling import batch_that_fits, resolve_precision
from ..errors import remedied
from ..features.store import FeatureStore
from ..functional import image_gradient
from ..functional.image_gradient import ChunkT, Images, StepResult, Views
from ..functional.ridge import solve
from ..functional.targets import Targets, as_targets
from ..optimise.context import Context
from ..optimise.passes import Plan, agreed, divided, encoder_of, measured, most, repays, starts_slowly
from ..optimise.real_features import Excerpt, RealFeatures
from ..optimise.sharding import joined, own_rows
from ..runtime.machine import device_bytes

__all__ = ["REAL_ROWS", "FeatureProblem"]

log = logging.getLogger(__name__)

_VALIDATION_VIEWS = 8
REAL_ROWS = 8192
"""Real features that are scored at once."""


class FeatureProblem:
    """A loss of the features of augmented views, and how a step along its gradient is taken.

    Call ``close`` when done with it, or use it in ``contextlib.closing``.

    Attributes:
        parts: columns of the features that have a loss of their own; ``loss`` is their average by the shares.
        ranks: this process among those that take the step together, each for the images of its ``rows``.
        promised: bytes of the device that images and moments take, to be said before ``plan`` is made.
        carried: bytes that an image and its moments take there on a visit; likewise.
        rough: whether products beside the encoder may round as coarsely as it does: on CUDA in bfloat16.
        targets: what the images stand for.
    """

    def __init__(self, context: Context) -> None:
        self.settings, self.seed, self.encoder = context.settings, context.seed, context.encoder
        self.parts = context.encoder.parts
        self.ranks, self.rows = context.ranks, context.rows
        self.device = context.encoder.device
        self.classes = context.classes
        self.labels = context.labels.to(self.device)
        soft = as_targets(context.labels, self.classes) if context.soft_labels is None else context.soft_labels
        self.targets = Targets(soft.to(self.device), context.settings.labels == "learned")
        self.mean = context.kernels.mean.to(self.device) * (context.settings.centre == "real")
        self.promised = self.carried = 0
        dtype = resolve_precision(context.settings.precision, self.device)
        self.rough = self.device.type == "cuda" and dtype == torch.bfloat16
        self._note, self._runtime = context.work / "passes.json", context.runtime
        self.validation, self._validated = self.features_of(context.validation), len(context.validation)

    def close(self) -> None:
        """End the threads that read ahead."""
        self.validation.close()

    def features_of(self, store: FeatureStore) -> RealFeatures:
        """This rank's part of a store."""
        own = store if self.ranks.size == 1 else Excerpt(store, own_rows(store, self.ranks))
        runtime = self._runtime
        return RealFeatures(own, self.device, self.mean, runtime.features, self.ranks.local_size, runtime.memory)

    # -- passes of the encoder -------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> Plan:
        """How a step's views are cut into passes: by what features and images leave of the device's memory."""
        plan = agreed(self._note, self._planned, self.ranks, self.device)
        if self.ranks.is_main:
            log.info("a step: %s", plan.told(self._most_views))
        return plan

    @cached_property
    def encode(self) -> Callable[[Tensor], Tensor]:
        """Pixels ``(b, 3, s, s)`` in [0, 1] to features ``(b, d)`` float32, in passes as planned."""
        settings = self.settings
        return encoder_of(self.encoder, settings.precision, self.plan, self._most_views, settings.compile is True)

    @property
    def batch(self) -> int:
        """Views in a pass of the encoder."""
        return self.plan.batch

    @property
    def _most_views(self) -> int:
        """Views of a step that one rank encodes, at most."""
        return -(-len(self.labels) // self.ranks.size) * self.views(0).count

    def _planned(self) -> Plan:
        settings, memory, cuda = self.settings, self._runtime.memory, self.device.type == "cuda"
        if not cuda and not memory:
            batch = settings.encoder_batch or batch_that_fits(self.encoder, settings.precision)
            return Plan(batch, most=batch, compiled=settings.compile is True)
        if self.ranks.is_main:
            log.info("measuring what a pass of the encoder takes")
        need, count = measured(self.encoder, settings.precision), self.views(0).count
        need = replace(need, work=need.work + -(-self.carried // count))
        usable = device_bytes(self.device, memory) - self._resident if cuda else int(memory * 2**30)
        images = self._most_views // count
        batch, kept = divided(images, count, need, usable, settings.encoder_batch)
        compiled = settings.compile is True
        if settings.compile == "auto":
            dtype = resolve_precision(settings.precision, self.device)
            compiled = repays(settings.steps, self._most_views, need, self.device, dtype)
        plan = Plan(batch, kept, max(batch, most(need, usable)), compiled)
        return replace(plan, replayed=cuda and starts_slowly(plan, self._most_views))

    @property
    def _resident(self) -> int:
        """Bytes on the device that stay there beside the passes: weights, features, images and moments, solves."""
        weights = sum(tensor.nbytes for tensor in [*self.encoder.parameters(), *self.encoder.buffers()])
        m, d = len(self.labels) * self.views(0).count, self.encoder.dim
        solving = 4 * (6 * m * d + 8 * min(m, d) ** 2 + 2 * m * self.classes)
        scoring = 4 * 2 * max(REAL_ROWS, self.settings.outer_batch) * (d + 3 * self.classes)
        return 2 * weights + self._features_held + self.promised + solving + scoring

    @property
    def _features_held(self) -> int:
        """Bytes of real features on the device."""
        return self.validation.on_device

    @abstractmethod
    def loss(self, Z: Tensor, step: int) -> Tensor:
        """Loss at features ``Z (views * n, d)`` of all images' views, differentiable in them; the same on all ranks."""

    def views(self, step: int) -> Views:
        """The views of a step: a function of (seed, step)."""
        settings = self.settings
        augment = settings.augment if settings.augment.active else None
        count = settings.augmentations if augment is not None else 1
        path = ("augment", step)
        return Views(len(self.labels), count, self.encoder.size, augment, self.seed, path, self.device, self.rough)

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

        plan = self.plan
        outcome = image_gradient.step(self.encode, images, self.views(step), loss, plan.batch, update, plan.kept)
        return replace(outcome, finite=outcome.finite & finite[0]) if finite else outcome

    @property
    def cost(self) -> tuple[int, int]:
        """Images that one step sends through the encoder, forward and backward."""
        count, plan = self.views(0).count, self.plan
        views = [len(self.ranks.span(len(self.labels), rank)) * count for rank in range(self.ranks.size)]
        return sum(some if some <= plan.batch else 2 * some - min(plan.kept, some) for some in views), sum(views)

    def probe(self, Z: Tensor) -> Tensor:
        """The ridge probe ``W (d, C)`` solved on features ``Z (views * n, d)``, centred by the real mean.

        Of several parts each has a probe of its own: its rows of ``W``.
        """
        Y = (self.targets.probabilities - 1.0 / self.classes).repeat(len(Z) // len(self.labels), 1)
        centred, ridge = Z - self.mean, self.settings.number("ridge")
        with remedied(
            singular="raise distill.ridge, e.g. to 1e-3",
            infinite="lower distill.learning_rate, or check that the encoder is finite on these images",
        ):
            return torch.cat([solve(centred[:, part.columns], Y, ridge) for part in self.parts])

    @torch.no_grad()
    def validate(self, pictures: Tensor) -> float:
        """Top-1 in percent on the validation features of the probe solved on fixed, noise-free views.

        Of several parts it is their average by the shares. ``pictures``: the images of ``rows``,
        ``(len(rows), 3, s, s)`` uint8, on any device.
        """
        augment = self.settings.augment.without_noise()
        fixed = (augment, _VALIDATION_VIEWS) if augment.active else (None, 1)
        total = len(self.labels)
        size, path = self.encoder.size, ("validate",)
        views = Views(total, fixed[1], size, fixed[0], self.seed, path, self.device, self.rough)
        images = _Pictures(pictures, self.rows.start, self.device)
        W = self.probe(joined(self.ranks, image_gradient.features(self.encode, images, views, self.plan.most), total))
        hits = torch.zeros(len(self.parts), dtype=torch.int64, device=self.device)
        for Z, labels in self.validation.blocks(REAL_ROWS):
            logits = [Z[:, part.columns] @ W[part.columns] for part in self.parts]
            hits += torch.stack([(own.argmax(1) == labels).sum() for own in logits])
        (hits,) = self.ranks.all_reduce(hits)
        scores = [100 * float(hit) / self._validated for hit in hits]
        return sum(part.share * score for part, score in zip(self.parts, scores, strict=True))


@dataclass(frozen=True)
class _Picture:
    rows: range
    levels: list[Tensor]


@dataclass(frozen=True)
class _Pictures:
    """Finished images, numbered from ``first`` on, as ``image_gradient`` takes them: nothing but pixels."""

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
