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
from ...probe.views import FreshViews, Stream, ViewBank
from ..subject import Bench, Subject, Trained

__all__ = ["TEMPERATURE", "train"]

TEMPERATURE = 4.0


def train(subject: Subject, views: str) -> Trained:
    """Probes of every stream; ``views`` is ``bank-V`` or ``fresh``."""
    teacher = subject.teacher
    if teacher is None:
        raise ValueError("there is no teacher: the set was distilled with this encoder, or with an unknown one")
    settings, classes = subject.settings, subject.bench.classes
    trained = []
    for group in subject.groups():
        features: Callable[[int, Tensor | None], Tensor]
        taught: Callable[[int, Tensor | None], Tensor]
        if views == "fresh":
            features = FreshViews(partial(subject.fresh, group))
            taught = FreshViews(partial(_taught_afresh, subject, teacher, group))
        else:
            features = ViewBank(subject.bank(group), group)
            each = [_taught(subject, teacher, [stream], range(settings.views)) for stream in group]
            taught = ViewBank(torch.cat(each), group)  # the same stream picks the same view
        trained.append(
            fit_sgd(
                features,
                subject.targets[[stream.draw for stream in group]],
                classes,
                group,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                teacher=Teacher(taught, TEMPERATURE),
                tick=subject.tick,
            )
        )
    return Probes.join(trained), subject.streams, {}


def _taught(subject: Subject, teacher: Bench, streams: list[Stream], which: range) -> Tensor:
    """``(P, V, n, C)``: the teacher's probabilities, at the temperature, of numbered views."""
    Z = subject.views(streams, which, teacher.encoder).float()
    classifier = teacher.classifier
    logits = Z @ classifier.weights[0].to(Z) + classifier.bias[0].to(Z)
    return (logits / TEMPERATURE).softmax(-1).to(subject.bench.encoder.device)


def _taught_afresh(subject: Subject, teacher: Bench, streams: list[Stream], epoch: int) -> Tensor:
    return _taught(subject, teacher, streams, range(epoch, epoch + 1))[:, 0]
