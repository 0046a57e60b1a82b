"""One set of images, one encoder, one protocol: which probes are trained, and what they score."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import EvaluateSettings
from ..distilled import DistilledSet
from ..encoders import Encoder
from ..errors import ArtifactError
from ..features import FeatureStore
from ..kernels import Kernels
from ..probe import Probes, fit_logistic, fit_ridge, fit_sgd, score
from ..views import FreshViews, Stream, ViewBank, encode_clean, encode_views

__all__ = ["PROTOCOLS", "Bench", "Subject", "Variant", "run", "variants"]

_GROUP_BYTES = 2**31  # probes trained at once are cut into groups whose banks of views and weights fit in here
_BLOCK_ROWS = 8192


@dataclass(frozen=True, order=True)
class Variant:
    """A protocol and what it sees of the images: ``clean``, ``bank-V`` (V views encoded beforehand) or ``fresh``."""

    protocol: str
    views: str

    def __str__(self) -> str:
        return f"{self.protocol}-{self.views}"


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

    @property
    def classes(self) -> int:
        """Number of classes ``C``."""
        return len(self.judge.class_names)


class Subject:
    """One distilled set on one bench, with its views encoded once for all protocols that ask for them.

    Args:
        tick: called every now and then during long work; it may raise to stop it.
    """

    def __init__(
        self, data: DistilledSet, bench: Bench, settings: EvaluateSettings, seed: int, tick: Callable[[], object]
    ) -> None:
        self.bench, self.settings, self.seed, self.tick = bench, settings, seed, tick
        self.full = not len(data)
        self.images, self.targets = _stack_draws(data)
        self.streams = [Stream(seed, i, draw) for draw in range(len(self.images)) for i in range(settings.seeds)]
        self.borrowed = 0.0
        """Seconds of encoding that earlier protocols have paid for this one."""
        self._bank: tuple[list[Stream], Tensor, float] | None = None

    def views(self, streams: list[Stream], which: range) -> Tensor:
        """``(P, V, n, d)``: numbered views of the images of every stream's draw.

        Kept in float16, as features are cached, where one probe's own would not fit into a group in float32.
        """
        images = [self.images[stream.draw] for stream in streams]
        settings = self.settings
        return encode_views(
            self.bench.encoder,
            images,
            streams,
            which,
            settings.augment,
            settings.encoder_batch,
            settings.precision,
            tick=self.tick,
            dtype=self._kept_as,
        )

    @property
    def _bank_values(self) -> int:
        """Numbers in one probe's bank, or in one epoch of its fresh views."""
        return max(1, self.settings.views) * self.images.shape[1] * self.bench.encoder.dim

    @property
    def _kept_as(self) -> torch.dtype:
        return torch.float32 if self._bank_values * 4 <= _GROUP_BYTES else torch.float16

    def fresh(self, streams: list[Stream], epoch: int) -> Tensor:
        """``(P, n, d)``: the view whose number is that of the epoch."""
        return self.views(streams, range(epoch, epoch + 1))[:, 0]

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

        A probe takes its bank (or one epoch of fresh views), weights, gradient and Adam's two moments.
        """
        layers = 4 * 4 * self.bench.classes * self.bench.encoder.dim
        size = max(1, _GROUP_BYTES // (self._bank_values * self._kept_as.itemsize + layers))
        for first in range(0, len(self.streams), size):
            yield self.streams[first : first + size]


def _stack_draws(data: DistilledSet) -> tuple[Tensor, Tensor]:
    """Images ``(D, n, 3, s, s)`` and targets, ``(D, n)`` or ``(D, n, C)``, of the set's draws."""
    draws = data.draws
    if len({len(draw) for draw in draws}) != 1:
        sizes = ", ".join(str(len(draw)) for draw in draws)
        raise ArtifactError(f"the draws of {data.method} differ in size ({sizes} images): distil again")
    return torch.stack([draw.images for draw in draws]), torch.stack([draw.targets for draw in draws])


# -- protocols: subject, views -> probes, the streams they belong to, and what else there is to tell -------------------

Outcome = tuple[Probes, list[Stream], dict[str, Any]]


def _sgd(subject: Subject, views: str) -> Outcome:
    settings, classes = subject.settings, subject.bench.classes
    trained = []
    for group in subject.groups():
        features: ViewBank | FreshViews
        if views == "fresh":
            features = FreshViews(partial(subject.fresh, group))
        else:
            features = ViewBank(subject.bank(group), group)
        labels = subject.targets[[stream.draw for stream in group]]
        trained.append(
            fit_sgd(
                features,
                labels,
                classes,
                group,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                tick=subject.tick,
            )
        )
    return Probes.join(trained), subject.streams, {}


def _closed_form(subject: Subject, views: str) -> Outcome:
    bench, settings = subject.bench, subject.settings
    if subject.full:
        kernels, device = bench.kernels, bench.encoder.mean.device
        probe = Probes(kernels.weights[None].to(device), kernels.bias[None].to(device))
        return probe, [Stream(subject.seed, 0)], {"ridge": kernels.ridge}
    if views == "clean":
        Z = encode_clean(bench.encoder, subject.images, settings.encoder_batch, settings.precision)  # (D, n, d)
        streams = [Stream(subject.seed, 0, draw) for draw in range(len(Z))]
        probes = fit_ridge(Z, subject.targets, bench.classes, bench.kernels.mean, settings.ridge, bench.encoder.parts)
        return probes, streams, {}
    solved = []
    for group in subject.groups():
        bank = subject.bank(group)
        labels = torch.cat([subject.targets[[stream.draw for stream in group]]] * settings.views, dim=1)
        Z, mean = bank.flatten(1, 2), bench.kernels.mean
        solved.append(fit_ridge(Z, labels, bench.classes, mean, settings.ridge, bench.encoder.parts))
        subject.tick()
    return Probes.join(solved), subject.streams, {}


def _logistic(subject: Subject, views: str) -> Outcome:
    bench, device = subject.bench, subject.bench.encoder.mean.device
    train, validation = (
        (store.features().to(device), store.labels.to(device)) for store in (bench.train, bench.validation)
    )
    probe, strength = fit_logistic(train, validation, bench.classes, tick=subject.tick)
    return probe, [Stream(subject.seed, 0)], {"l2": strength}


PROTOCOLS: dict[str, Callable[[Subject, str], Outcome]] = {
    "sgd": _sgd,
    "closed_form": _closed_form,
    "logistic": _logistic,
}


def variants(settings: EvaluateSettings, full: bool) -> list[Variant]:
    """What is run on a set: on images the protocols of the settings, on all real data its two upper bounds.

    ``full`` has no images to augment: its ridge probe stands beside ``closed_form``, its logistic one beside ``sgd``.
    """
    if full:
        return [Variant("closed_form", "clean"), Variant("logistic", "clean")]
    bank = [f"bank-{settings.views}"] if settings.views else []
    seen = {"sgd": bank or ["fresh"], "closed_form": ["clean", *bank]}
    return [Variant(protocol, views) for protocol in settings.protocols for views in seen[protocol]]


def run(subject: Subject, variant: Variant) -> dict[str, Any]:
    """Train and score one protocol: JSON values, percentages of the judging split.

    Returns:
        ``rows``: ``draw``, ``seed``, ``top1`` and ``top5`` of every probe; ``confusion``: ``C`` rows of ``C`` counts
        (true class, taken for), summed over the probes; ``notes``: what was chosen on validation. Where the images
        have groups, also ``worst_group`` in the rows, the lowest top-1 of any group, and ``groups``: the mean of
        each.
    """
    probes, streams, notes = PROTOCOLS[variant.protocol](subject, variant.views)
    judge = subject.bench.judge
    names = sorted(set(judge.groups or ()))
    numbers = {name: number for number, name in enumerate(names)}
    groups = None if judge.groups is None else torch.tensor([numbers[name] for name in judge.groups])
    found = score(probes, judge.blocks(_BLOCK_ROWS), groups)
    rows: list[dict[str, Any]] = [
        {"draw": stream.draw, "seed": stream.index, "top1": top1, "top5": top5}
        for stream, top1, top5 in zip(streams, found.top1, found.top5, strict=True)
    ]
    piece = {"rows": rows, "confusion": found.confusion.tolist(), "notes": notes}
    if found.groups is not None:
        for row, worst in zip(rows, found.groups.amin(1).tolist(), strict=True):
            row["worst_group"] = worst
        piece["groups"] = dict(zip(names, found.groups.mean(0).tolist(), strict=True))
    return piece
