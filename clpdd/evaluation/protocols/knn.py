"""Nearest neighbours among the images as they are, by cosine; how many is chosen on validation features."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...probe.neighbours import Neighbours
from ...probe.scoring import score
from ...probe.views import Stream, encode_clean
from ..subject import Subject, Trained

__all__ = ["GRID", "train"]

GRID = (1, 5, 10, 20)
"""Numbers of neighbours that are tried, as far as there are so many images."""

_BLOCK_ROWS = 8192


def train(subject: Subject, views: str) -> Trained:
    """One classifier for each draw; ``views`` is always ``clean``. Of soft labels the likeliest class counts.

    With one image per class there is one neighbour, and nothing is chosen; of equals the fewest neighbours.
    """
    bench, settings = subject.bench, subject.settings
    Z = encode_clean(bench.encoder, subject.images, settings.encoder_batch, settings.precision)  # (D, n, d)
    labels = subject.targets if subject.targets.ndim == 2 else subject.targets.argmax(2)

    def classifier(k: list[int]) -> Neighbours:
        return Neighbours(Z, labels, bench.classes, k, bench.encoder.parts)

    best = _chosen(subject, Z, labels, classifier)
    streams = [Stream(subject.seed, 0, draw) for draw in range(len(Z))]
    return classifier(best), streams, {"k": best}


def _chosen(subject: Subject, Z: Tensor, labels: Tensor, classifier: Callable[[list[int]], Neighbours]) -> list[int]:
    draws, images = labels.shape
    one_each = int(torch.stack([own.bincount() for own in labels.cpu()]).max()) == 1
    tried = [1] if one_each else [k for k in GRID if k <= images]
    if len(tried) == 1:
        return tried * draws
    scores = torch.tensor([score(classifier([k] * draws), _blocks(subject)).top1 for k in tried])  # (K, D)
    best = [row.tolist() for row in scores.T]
    return [tried[own.index(max(own))] for own in best]


def _blocks(subject: Subject) -> Iterator[tuple[Tensor, Tensor]]:
    for block in subject.bench.validation.blocks(_BLOCK_ROWS):
        subject.tick()
        yield block
