"""Distilled sets made of real images, by their rows in the training split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..errors import DataError
from ..optimise.context import Context
from ..optimise.start import real_images

__all__ = ["chosen_set", "refuse_small_classes"]


def chosen_set(context: Context, rows: list[int], draw: Tensor | None = None) -> DistilledSet:
    """The set of the training images ``rows``: each draw class by class, as many of each as the settings ask for.

    Args:
        draw: ``(len(rows),)`` int64, the draw of every row; ``None``: there is one.
    """
    draw = torch.zeros(len(rows), dtype=torch.int64) if draw is None else draw
    draws, soft = int(draw.max()) + 1, context.soft_labels
    return DistilledSet(
        real_images(context, rows),
        context.labels.repeat(draws),
        context.index.class_names,
        context.record | {"sources": [context.index.ids[row] for row in rows]},
        draw=draw,
        soft_labels=None if soft is None else soft.repeat(draws, 1),
    )


def refuse_small_classes(context: Context, have: Sequence[int]) -> None:
    """Raise ``DataError`` where a class has fewer training images, ``have``, than are to be chosen of it."""
    for name, wanted, there in zip(context.index.class_names, context.per_class, have, strict=True):
        if there < wanted:
            raise DataError(f"class {name!r} has {there} training images, but distill.images_per_class is {wanted}")
