r"""LGM, linear gradient matching (arXiv 2511.16674): the peer that CLP-DD is compared with.

At every step a fresh random linear classifier meets a fresh batch of real images, augmented once and encoded, and the
synthetic views; the loss is one minus the cosine between the classifier's two gradients, and its gradient flows
through the synthetic one into the images.

Differences from the published code, none of which changes the mathematics: the gradient of cross-entropy with respect
to a linear layer is written out, ``(softmax(Z W^T + b) - Y)^T Z / m``, so that the second-order back-propagation is an
ordinary one; float32 in place of float16 autocast, hence no loss scaling; crops are taken from images of the encoder's
input size instead of 256 pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..augment import augment
from ..distilled import DistilledSet
from ..encoders import encode
from ..optimise import optimise
from ..seeding import generator
from .base import Context
from .problem import FeatureProblem
from .stream import RealStream

__all__ = ["GradientMatch", "Lgm", "classifier_gradient", "match_loss", "random_classifier"]

_WEIGHT_STD = 0.01


def random_classifier(classes: int, dim: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Weights ``(C, d)`` from N(0, 0.01^2) and zero bias ``(C,)``: a function of (seed, step)."""
    weight = torch.randn(classes, dim, generator=generator(seed, "classifier", step)) * _WEIGHT_STD
    return weight, torch.zeros(classes)


def classifier_gradient(Z: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient of the mean cross-entropy of ``Z W^T + b`` with respect to ``W`` and ``b``, flat: ``(C * d + C,)``.

    Args:
        Z: features ``(m, d)``; the result is differentiable in them.
        labels: ``(m,)`` int64.
        weight, bias: ``(C, d)`` and ``(C,)``.
    """
    residual = F.linear(Z, weight, bias).softmax(1) - F.one_hot(labels, len(bias))
    residual = residual / len(Z)
    return torch.cat([(residual.T @ Z).flatten(), residual.sum(0)])


def match_loss(real: Tensor, synthetic: Tensor) -> Tensor:
    """``1 - cosine`` of two flat gradients, in [0, 2]."""
    return 1 - F.cosine_similarity(real, synthetic, dim=0)


class GradientMatch(FeatureProblem):
    """The loss of one LGM step."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        batch = len(context.labels) * context.settings.augmentations
        self.stream = RealStream(context.index, context.encoder.transform, batch, context.seed)

    @property
    def cost(self) -> tuple[int, int]:
        """Images that one step sends through the encoder: the real batch goes forward as well."""
        forward, backward = super().cost
        return forward + self.stream.batch, backward

    def loss(self, Z: Tensor, step: int) -> Tensor:
        """``1 - cosine`` between the gradients on real images and on features ``Z (views * n, d)``."""
        weight, bias = (part.to(Z) for part in random_classifier(self.classes, Z.shape[1], self.seed, step))
        real = self._real_gradient(step, weight, bias)
        labels = self.labels.repeat(len(Z) // len(self.labels))
        return match_loss(real, classifier_gradient(Z, labels, weight, bias))

    @torch.no_grad()
    def _real_gradient(self, step: int, weight: Tensor, bias: Tensor) -> Tensor:
        images, labels = self.stream.at(step)
        pixels = images.to(self.device).float() / 255
        if self.settings.augment.active:
            chosen = generator(self.seed, "augment real", step)
            pixels = augment(pixels, self.encoder.size, self.settings.augment, chosen)
        Z = encode(self.encoder, pixels, self.settings.encoder_batch)
        return classifier_gradient(Z, labels.to(self.device), weight, bias)


class Lgm:
    """Linear gradient matching."""

    name = "lgm"
    settings_used = (
        "images_per_class",
        "steps",
        "learning_rate",
        "schedule",
        "ridge",  # of the validation scores
        "centre",  # the same
        "augmentations",
        "augment",
        "parameterisation",
        "extend_every",
        "decorrelate",
        "initialisation",
        "image_size",
        "encoder_batch",
        "keep",
        "validate_every",
        "preview_every",
    )

    def __call__(self, context: Context) -> DistilledSet:
        problem = GradientMatch(context)
        with problem.stream:
            return optimise(context, problem)
