"""The ridge probe, solved on clean images or on a bank of views; of all real data, the kernel stage's."""

from __future__ import annotations

import torch

from ...probe.closed_form import fit_ridge
from ...probe.linear import Probes
from ...probe.views import Stream, encode_clean
from ..subject import Subject, Trained

__all__ = ["train"]


def train(subject: Subject, views: str) -> Trained:
    """Ridge probes of every draw (``clean``) or stream (``bank-V``), by ``probe.closed_form.fit_ridge``."""
    bench, settings = subject.bench, subject.settings
    if subject.full:
        kernels, device = bench.kernels, bench.encoder.device
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
