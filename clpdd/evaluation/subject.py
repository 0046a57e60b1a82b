"""One set of images with one encoder: what the protocols train on and are scored with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config.evaluate import EvaluateSettings
from ..distilled.dataset import DistilledSet
from ..encoders.encoder import Encoder
from ..errors import ArtifactError
from ..features.kernels import Kernels
from ..features.store import FeatureStore
from ..probe.linear import Judged, Probes
from ..probe.logistic import fit_logistic
from ..probe.views import Stream, encode_views

__all__ = ["Bench", "Subject", "Trained", "ViewedProtocol"]

_GROUP_BYTES = 2**31  # probes trained at once are cut into groups whose banks of views and weights fit in here


@dataclass(frozen=True, order=True)
class ViewedProtocol:
    """A protocol and what it sees of the images: ``clean``, ``bank-V`` (V views encoded beforehand) or ``fresh``."""

    name: str
    views: str

    def __str__(self) -> str:
        return f"{self.name}-{self.views}"


@dataclass(frozen=True)
class Bench:
    """What one encoder brings to the evaluation of any set. Features of the test split are read here and only here.

    ``judge`` is what probes are scored on: the test split for results, validation features where something is chosen.
    """

    encoder: Encoder
    train: FeatureStore
    validation: FeatureStore
    judge: FeatureStore
    kernels: Kernels
    _fitted: list[Probes] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return len(self.judge.class_names)

    def classifier(self, tick: Callable[[], object]) -> Probes:
        """One probe, the logistic regression on all real data that ``full`` is scored with; fitted once.

        ``tick`` is called now and then during the fit; it may raise to stop it.
        """
        if not self._fitted:
            device = self.encoder.device
            train, validation = (
                (store.features().to(device), store.labels.to(device)) for store in (self.train, self.validation)
            )
            self._fitted.append(fit_logistic(train, validation, self.classes, tick=tick)[0])
        return self._fitted[0]


class Subject:
    """One distilled set on one bench, with its views encoded once for all protocols that ask for them.

    Args:
        tick: called every now and then during long work; it may raise to stop it.
        teacher: the bench of the encoder that the set was distilled with, where that is another one.
    """

    def __init__(
        self,
        data: DistilledSet,
        bench: Bench,
        settings: EvaluateSettings,
        seed: int,
        tick: Callable[[], object],
        teacher: Bench | None = None,
    ) -> None:
        self.bench, self.settings, self.seed, self.tick, self.teacher = bench, settings, seed, tick, teacher
        self.full = not len(data)
        self.images, self.targets = _stack_draws(data)
        self.streams = [Stream(seed, i, draw) for draw in range(len(self.images)) for i in range(settings.seeds)]
        self.borrowed = 0.0
        """Encoding time of the shared bank in seconds, charged to every protocol that uses it."""
        self._bank: tuple[list[Stream], Tensor, float] | None = None

    def views(self, streams: list[Stream], which: range, encoder: Encoder | None = None) -> Tensor:
        """``(P, V, n, d)``: numbered views of the images of every stream's draw, of the bench's encoder or another.

        Kept in float16, as features are cached, where one probe's own would not fit into a group in float32.
        """
        images = [self.images[stream.draw] for stream in streams]
        settings, encoder = self.settings, encoder or self.bench.encoder
        return encode_views(
            encoder,
            images,
            streams,
            which,
            settings.augment,
            settings.encoder_batch,
            settings.precision,
            tick=self.tick,
            dtype=self._kept_as(encoder),
        )

    def _bank_values(self, encoder: Encoder) -> int:
        """Numbers in one probe's bank, or in one epoch of its fresh views."""
        return max(1, self.settings.views) * self.images.shape[1] * encoder.dim

    def _kept_as(self, encoder: Encoder) -> torch.dtype:
        return torch.float32 if self._bank_values(encoder) * 4 <= _GROUP_BYTES else torch.float16

    def fresh(self, streams: list[Stream], epoch: int, encoder: Encoder | None = None) -> Tensor:
        """``(P, n, d)``: the view whose number is that of the epoch, of the bench's encoder or another."""
        return self.views(streams, range(epoch, epoch + 1), encoder)[:, 0]

    def bank(self, streams: list[Stream]) -> Tensor:
        """The first ``settings.views`` views; the last bank asked for is kept."""
        if self._bank is None or self._bank[0] != streams:
            self._bank = None  # freed before the next one is made
            start = time.perf_counter()
            made = self.views(streams, range(self.settings.views))
            self._bank = streams, made, time.perf_counter() - start
        else:
            self.borrowed += self._bank[2]
        return self._bank[1]

    def groups(self) -> Iterator[list[Stream]]:
        """The streams, cut into parts that fit into memory together; the same parts for every protocol.

        A probe takes its bank (or one epoch of fresh views), the teacher's of the same views where there is one,
        weights, gradient and Adam's two moments.
        """
        layers = 4 * 4 * self.bench.classes * self.bench.encoder.dim
        seeing = [self.bench.encoder] + ([] if self.teacher is None else [self.teacher.encoder])
        banks = sum(self._bank_values(encoder) * self._kept_as(encoder).itemsize for encoder in seeing)
        size = max(1, _GROUP_BYTES // (banks + layers))
        for first in range(0, len(self.streams), size):
            yield self.streams[first : first + size]


def _stack_draws(data: DistilledSet) -> tuple[Tensor, Tensor]:
    """Images ``(D, n, 3, s, s)`` and targets, ``(D, n)`` or ``(D, n, C)``, of the set's draws."""
    draws = data.draws
    if len({len(draw) for draw in draws}) != 1:
        sizes = ", ".join(str(len(draw)) for draw in draws)
        raise ArtifactError(f"the draws of {data.method} differ in size ({sizes} images): distil again")
    return torch.stack([draw.images for draw in draws]), torch.stack([draw.targets for draw in draws])


Trained = tuple[Judged, list[Stream], dict[str, Any]]
"""What a protocol gives: classifiers, the stream of random numbers that each belongs to, and what was chosen."""
