"""The protocol ``sgd``, taught by the distilling encoder's full-data classifier (SFM, arXiv 2602.05391).

For an encoder other than the one that distilled: half the loss is the cross-entropy of the labels, half the divergence
from what that encoder's classifier of all real data says of the same view, at the temperature 4, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ...probe.linear import Probes
from ...probe.sgd import Teacher, fit_sgd
from ...probe.views import FreshViews, ViewBank
from ..subject import Subject, Trained

__all__ = ["TEMPERATURE", "train"]

TEMPERATURE = 4.0


def train(subject: Subject, views: str) -> Trained:
    """Probes of every stream; ``views`` is ``bank-V`` or ``fresh``."""
    teacher = subject.teacher
    if teacher is None:
        raise ValueError("there is no teacher: the set was distilled with this encoder, or with an unknown one")
    settings, classes = subject.settings, subject.bench.classes
    classifier = teacher.classifier(subject.tick)
    trained = []
    for group in subject.groups():
        own: Callable[[int, Tensor | None], Tensor]
        theirs: Callable[[int, Tensor | None], Tensor]
        if views == "fresh":
            own, theirs = (FreshViews(partial(subject.fresh, group, encoder=e)) for e in (None, teacher.encoder))
        else:
            own = ViewBank(subject.bank(group), group)
            # The same streams pick the same view of both.
            theirs = ViewBank(subject.views(group, range(settings.views), teacher.encoder), group)
        trained.append(
            fit_sgd(
                own,
                subject.targets[[stream.draw for stream in group]],
                classes,
                group,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                teacher=Teacher(partial(_taught, classifier, subject.bench.encoder.device, theirs), TEMPERATURE),
                tick=subject.tick,
            )
        )
    return Probes.join(trained), subject.streams, {}


def _taught(
    classifier: Probes,
    device: torch.device,
    theirs: Callable[[int, Tensor | None], Tensor],
    epoch: int,
    rows: Tensor | None,
) -> Tensor:
    """``(P, b, C)`` on a device: a teacher's probabilities, at the temperature, of what it sees of a batch.

    Made anew for every batch, since the probabilities of all views may take many times what their features do.
    """
    Z = theirs(epoch, rows)
    logits = Z @ classifier.weights[0].to(Z) + classifier.bias[0].to(Z)
    return (logits / TEMPERATURE).softmax(-1).to(device)
