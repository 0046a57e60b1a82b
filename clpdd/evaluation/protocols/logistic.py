"""Logistic regression, its strength chosen on validation features: on a set of images, or on all real features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...functional.parts import Part
from ...probe.linear import Probes
from ...probe.logistic import SMALL_GRID, fit_logistic
from ...probe.views import Stream, encode_clean
from ..subject import Subject, Trained

__all__ = ["spread", "train"]


def train(subject: Subject, views: str) -> Trained:
    """Probes of every draw (``clean``) or stream (``bank-V``), or one of all real data, by ``probe.logistic``.

    Of a set the features are centred by the real training features' mean, as for the ridge probe, and divided by one
    number, ``spread``: ten images know neither.
    """
    bench, device = subject.bench, subject.bench.encoder.device
    validation = bench.validation.features().to(device), bench.validation.labels.to(device)
    if subject.full:
        train = bench.train.features().to(device), bench.train.labels.to(device)
        probe, strength = fit_logistic(train, validation, bench.classes, tick=subject.tick)
        return probe, [Stream(subject.seed, 0)], {"l2": strength}
    standard = bench.kernels.mean, spread(bench.kernels.moments.variances, bench.encoder.parts)
    probes, streams, strengths = list[Probes](), list[Stream](), list[float]()
    for stream, Z, targets in _features(subject, views):
        train = Z.float(), targets.to(device)
        probe, strength = fit_logistic(
            train, validation, bench.classes, grid=SMALL_GRID, standard=standard, tick=subject.tick
        )
        probes.append(probe)
        streams.append(stream)
        strengths.append(strength)
    return Probes.join(probes), streams, {"l2": strengths}


def spread(variances: Tensor, parts: Sequence[Part]) -> Tensor:
    """Root mean square deviation of real features, one number for all of an encoder's columns.

    Not each column's own: what hardly varies in real images can vary much in synthetic ones, and would outweigh all
    else after division by its own deviation.

    Args:
        variances: of the features' columns, ``(d,)``, >= 0 but for rounding.
        parts: columns of the members of a joint encoder, each of which has its own number.

    Returns:
        Deviations ``(d,)``.
    """
    made = torch.empty_like(variances)
    for part in parts:
        made[part.columns] = variances[part.columns].clamp_min(0).mean().sqrt()
    return made


def _features(subject: Subject, views: str) -> Iterator[tuple[Stream, Tensor, Tensor]]:
    """What each probe is trained on: its stream, features ``(m, d)`` and targets, ``(m,)`` or ``(m, C)``."""
    settings = subject.settings
    if views == "clean":
        Z = encode_clean(subject.bench.encoder, subject.images, settings.encoder_batch, settings.precision)
        for draw, (own, targets) in enumerate(zip(Z, subject.targets, strict=True)):
            yield Stream(subject.seed, 0, draw), own, targets
        return
    for group in subject.groups():
        for stream, bank in zip(group, subject.bank(group), strict=True):
            yield stream, bank.flatten(0, 1), torch.cat([subject.targets[stream.draw]] * settings.views)
