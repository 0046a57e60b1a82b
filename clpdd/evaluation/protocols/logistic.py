"""Logistic regression on all real features, its strength chosen on validation features."""

from __future__ import annotations

from ...probe.logistic import fit_logistic
from ...probe.views import Stream
from ..subject import Subject, Trained

__all__ = ["train"]


def train(subject: Subject, views: str) -> Trained:
    """One probe, by ``probe.logistic.fit_logistic``; there are no images, so ``views`` is always ``clean``."""
    bench, device = subject.bench, subject.bench.encoder.device
    train, validation = (
        (store.features().to(device), store.labels.to(device)) for store in (bench.train, bench.validation)
    )
    probe, strength = fit_logistic(train, validation, bench.classes, tick=subject.tick)
    return probe, [Stream(subject.seed, 0)], {"l2": strength}
