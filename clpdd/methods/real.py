"""Baselines made of real images: random draws, the most central ones, the nearest to distilled ones, and all."""

from __future__ import annotations

import torch

from ..distilled.dataset import DistilledSet
from ..encoders.calling import encode
from ..functional.parts import directions
from ..functional.seeding import generator
from ..optimise.context import Context
from ..optimise.start import nearest_rows
from .chosen import chosen_set, refuse_small_classes

__all__ = ["Centroid", "Full", "Neighbor", "Random"]

_ENCODED = 256  # images encoded at once where the settings do not say


class Random:
    """Random training images of every class, in several independent draws."""

    name = "random"

    def __call__(self, context: Context) -> DistilledSet:
        labels = torch.tensor(context.index.labels)
        refuse_small_classes(context, torch.bincount(labels, minlength=context.classes).tolist())
        rows: list[int] = []
        for draw in range(context.settings.random_draws):
            for label in range(context.classes):
                members = (labels == label).nonzero().flatten()
                ipc = context.per_class[label]
                chosen = torch.randperm(len(members), generator=generator(context.seed, "random", draw, label))[:ipc]
                rows += members[chosen].tolist()
        n = len(context.labels)
        return chosen_set(context, rows, torch.arange(context.settings.random_draws).repeat_interleave(n))


class Centroid:
    """The real images nearest to their class mean in feature space."""

    name = "centroid"

    def __call__(self, context: Context) -> DistilledSet:
        rows = nearest_rows(context)
        return chosen_set(context, rows)


class Neighbor:
    """For each image that another method made, the real image of its class nearest to it (cosine of the features)."""

    name = "neighbor"

    def __call__(self, context: Context) -> DistilledSet:
        if context.source is None:
            raise ValueError("the context lacks the set whose neighbours are asked for: give it a source")
        made = context.source
        encoder, train = context.encoder, context.train
        Z = encode(encoder, made.images, context.settings.encoder_batch or _ENCODED, context.settings.precision).cpu()
        Z, real = (directions(features, encoder.parts) for features in (Z, train.features()))
        similarity = Z @ real.T
        similarity[made.labels[:, None] != train.labels] = -torch.inf
        rows = similarity.argmax(1).tolist()
        return chosen_set(context, rows)


class Full:
    """All training images: no copy of them, only the record that evaluation is to use the cached features."""

    name = "full"

    def __call__(self, context: Context) -> DistilledSet:
        record = context.record | {"training_images": len(context.index)}
        none = torch.zeros(0, dtype=torch.int64)
        return DistilledSet(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), none, context.index.class_names, record)
