r"""Classifier inheritance (SFM, arXiv 2602.05391): the distilling encoder's full-data classifier behind a linear map.

For an encoder B other than A, which distilled: a linear map from B's features to A's is fitted on the synthetic images
by mean squared error, and A's classifier of all real data, :math:`z \mapsto W_A^\top z + b_A`, stands behind it. The
map is ridge regression; being linear in its targets, it and the classifier are one regression on
:math:`(Z_A - \bar z_A) W_A`, of ``C`` columns. The published code trains the map by Adam; the exact solution takes its
place, its strength chosen on B's validation features.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ...errors import remedied
from ...probe.closed_form import regress
from ...probe.linear import Probes
from ...probe.scoring import score
from ...probe.views import Stream, encode_clean
from ..subject import Bench, Subject, Trained

__all__ = ["GRID", "train"]

GRID = (10.0, 1.0, 1e-1, 1e-2, 1e-3)
"""Relative ridges of the map, strongest first: of equals on validation the first is kept.

One at which the map has no unique solution is passed over.
"""


def train(subject: Subject, views: str) -> Trained:
    """Probes of every draw (``clean``) or stream (``bank-V``) over B's features, ready to be scored as any other."""
    bench, teacher = subject.bench, _teacher(subject)
    device = bench.encoder.device
    validation = bench.validation.features().to(device), bench.validation.labels.to(device)
    classifier = teacher.classifier(subject.tick)
    weights, bias = (part[0].to(device) for part in (classifier.weights, classifier.bias))
    theirs_mean, own_mean = teacher.kernels.mean.to(device), bench.kernels.mean.to(device)
    kept, streams, ridges = list[Probes](), list[Stream](), list[float]()
    for stream, own, theirs in _features(subject, teacher, views):

        def wanted(rows: slice, theirs: Tensor = theirs) -> Tensor:
            subject.tick()
            return (theirs[rows].to(device).float() - theirs_mean) @ weights

        with remedied(
            singular="distil images that differ, or take inherit out of evaluate.protocols",
            infinite="check that both encoders are finite on these images",
        ):
            maps = regress(own, wanted, len(bias), own_mean, GRID, bench.encoder.parts)
        best: tuple[float, float, Probes] | None = None
        for ridge, mapped in maps.items():
            probe = Probes(mapped[None], (bias + theirs_mean @ weights - own_mean @ mapped)[None])
            top1 = score(probe, [validation]).top1[0]
            if best is None or top1 > best[0]:
                best = top1, ridge, probe
            subject.tick()
        assert best is not None
        kept.append(best[2])
        streams.append(stream)
        ridges.append(best[1])
    return Probes.join(kept), streams, {"ridge": ridges}


def _teacher(subject: Subject) -> Bench:
    if subject.teacher is None:
        raise ValueError("there is nothing to inherit: the set was distilled with this encoder, or with an unknown one")
    return subject.teacher


def _features(subject: Subject, teacher: Bench, views: str) -> Iterator[tuple[Stream, Tensor, Tensor]]:
    """For each probe its stream, and the features of the same views by both encoders, ``(m, d_B)``, ``(m, d_A)``."""
    settings = subject.settings
    if views == "clean":
        own, theirs = (
            encode_clean(encoder, subject.images, settings.encoder_batch, settings.precision)
            for encoder in (subject.bench.encoder, teacher.encoder)
        )
        yield from ((Stream(subject.seed, 0, draw), own[draw], theirs[draw]) for draw in range(len(own)))
        return
    for group in subject.groups():
        for stream, bank in zip(group, subject.bank(group), strict=True):
            seen = subject.views([stream], range(settings.views), teacher.encoder)[0]
            yield stream, bank.flatten(0, 1), seen.flatten(0, 1)
