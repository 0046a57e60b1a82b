"""The field's protocol: a linear layer trained by Adam on augmented views of the images."""

from __future__ import annotations

from functools import partial

from ...probe.linear import Probes
from ...probe.sgd import fit_sgd
from ...probe.views import FreshViews, ViewBank
from ..subject import Subject, Trained

__all__ = ["train"]


def train(subject: Subject, views: str) -> Trained:
    """Probes of every stream, by ``probe.sgd.fit_sgd``; ``views`` is ``bank-V`` or ``fresh``."""
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
