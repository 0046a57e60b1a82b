r"""Real images chosen one by one, each so that the ridge probe on all chosen ones does best on validation features.

What falls is the mean squared error on the validation split, of the probe on the clean, centred features of the chosen
images. Classes take turns: one image of every class, then a second, up to ten. The probe's :math:`\lambda` is
``distill.ridge`` times the mean squared length of the centred training features, one value from the first image to the
last.
"""

from __future__ import annotations

import torch

from ..distilled.dataset import DistilledSet
from ..errors import SettingsError
from ..features.by_class import ClassFeatures, Scale
from ..functional import coreset_memory
from ..functional.coresets import GreedyRidge
from ..functional.moments import stream_moments
from ..optimise.context import Context
from .chosen import chosen_set, refuse_small_classes

__all__ = ["MOST", "RidgeGreedy"]

MOST = 10
"""Images per class at most: every one asks for a pass over all training features."""

_BLOCK_ROWS = 8192


class RidgeGreedy:
    """Images chosen by the loss of the ridge probe on validation features."""

    name = "ridge-greedy"

    def __call__(self, context: Context) -> DistilledSet:
        """The chosen images.

        Raises ``SettingsError`` for more than ten per class, or a ridge of 0, ``DataError`` where a class has too few
        images, ``ResourceError`` where memory has no room.
        """
        if context.settings.most_per_class > MOST:
            raise SettingsError(
                f"distill.images_per_class is {context.settings.most_per_class}, but ridge-greedy chooses at most "
                f"{MOST} images per class: lower it, or take another coreset, e.g. herding"
            )
        dim, classes = context.train.dim, context.classes
        features = ClassFeatures(
            context.train,
            context.kernels,
            context.encoder.parts,
            self.name,
            lambda label, n: coreset_memory.ridge_greedy(n, dim, classes),
        )
        refuse_small_classes(context, features.counts)
        grown = _grown(context, features.scale)
        chosen: list[list[int]] = [[] for _ in range(context.classes)]
        for turn in range(context.settings.most_per_class):
            for label, members, Z in features:
                if turn < context.per_class[label]:
                    changes = grown.changes(Z, label)
                    changes[[int((members == row).nonzero()) for row in chosen[label]]] = torch.inf
                    best = int(changes.argmin())
                    grown.add(Z[best], label)
                    chosen[label].append(int(members[best]))
        return chosen_set(context, [row for rows in chosen for row in rows])


def _grown(context: Context, scale: Scale) -> GreedyRidge:
    """The empty probe, with the moments of the validation features."""
    energy = (context.kernels.moments.variances * scale.factors.square()).sum()
    ridge = context.settings.number("ridge") * float(energy)
    if not ridge > 0:
        raise SettingsError(
            "distill.ridge is 0, and ridge-greedy needs it above 0: the first image alone fixes nothing"
        )
    blocks = ((scale(Z), labels) for Z, labels in context.validation.scan(_BLOCK_ROWS))
    moments = stream_moments(blocks, context.classes)
    cross = moments.cross - moments.cross.sum(1, keepdim=True) / context.classes  # targets less 1/C
    return GreedyRidge(moments.gram, cross, ridge)
