r"""LGM, linear gradient matching (arXiv 2511.16674): the peer that CLP-DD is compared with.

At every step a fresh random linear classifier meets a fresh batch of real images, augmented once and encoded, and the
synthetic views; the loss is one minus the cosine between the classifier's two gradients, and its gradient flows
through the synthetic one into the images.

Differences from the published code, none of which changes the mathematics: the gradient of cross-entropy with respect
to a linear layer is written out, ``(softmax(Z W^T + b) - Y)^T Z / m``, so that the second-order back-propagation is an
ordinary one; float32 or bfloat16 in place of float16 autocast, hence no loss scaling; crops are taken from images of
the encoder's input size instead of 256 pixels.
"""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..functional.image_gradient import Views
from ..functional.matching import classifier_gradient, match_loss, random_classifier
from ..functional.parts import weighted
from ..optimise.context import Context
from ..optimise.loop import optimise
from .problem import FeatureProblem
from .stream import RealStream

__all__ = ["GradientMatch", "Lgm"]


class GradientMatch(FeatureProblem):
    """The loss of one LGM step."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        batch = len(context.labels) * context.settings.augmentations
        self.stream = RealStream(context.index, context.encoder.transform, batch, context.seed, ranks=self.ranks)

    def close(self) -> None:
        """End the threads that read ahead."""
        super().close()
        self.stream.close()

    @property
    def cost(self) -> tuple[int, int]:
        """Images that one step sends through the encoder: the real batch goes forward as well."""
        forward, backward = super().cost
        return forward + self.stream.batch, backward

    def loss(self, Z: Tensor, step: int) -> Tensor:
        """``1 - cosine`` between the gradients on real images and on features ``Z (views * n, d)``.

        Each member of a joint encoder has a classifier of its own.
        """
        real, labels = self._real(step)
        targets = self.targets.probabilities.repeat(len(Z) // len(self.labels), 1)

        def match(own: slice) -> Tensor:
            synthetic = Z[:, own]
            drawn = random_classifier(self.classes, synthetic.shape[1], self.seed, step)
            weight, bias = (part.to(Z) for part in drawn)
            wanted = classifier_gradient(real[:, own], labels, weight, bias)
            return match_loss(wanted, classifier_gradient(synthetic, targets, weight, bias))

        return weighted(self.parts, match)

    @torch.no_grad()
    def _real(self, step: int) -> tuple[Tensor, Tensor]:
        """Features ``(b, d)`` of this step's real images, augmented once, and labels ``(b,)``."""
        images, labels = self.stream.at(step)
        augment, total = self.settings.augment if self.settings.augment.active else None, self.stream.batch
        size, path = self.encoder.size, ("augment real", step)
        views = Views(total, 1, size, augment, self.seed, path, self.device, self.rough)
        Z = []
        for start in range(0, len(images), self.plan.most):
            pixels = images[start : start + self.plan.most].to(self.device, non_blocking=True).float() / 255
            first = self.stream.own.start + start
            Z.append(self.encode(views.of(pixels, range(first, first + len(pixels)))))
        return self.ranks.all_gather(torch.cat(Z), total), labels.to(self.device)


class Lgm:
    """Linear gradient matching."""

    name = "lgm"

    def __call__(self, context: Context) -> DistilledSet:
        with closing(GradientMatch(context)) as problem:
            return optimise(context, problem)
