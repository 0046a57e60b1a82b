"""What methods that optimise images share: views, the encoder's gradient, the score on validation features."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..augment import augment
from ..encoders import encode
from ..ridge import centred_one_hot, solve
from ..seeding import generator
from .base import Context

__all__ = ["FeatureProblem"]

_VALIDATION_VIEWS = 8


class FeatureProblem(ABC):
    """A loss of the features of augmented views, and its gradient with respect to the images."""

    def __init__(self, context: Context) -> None:
        self.settings, self.seed, self.encoder = context.settings, context.seed, context.encoder
        self.device = context.encoder.mean.device
        self.classes = context.classes
        self.labels = context.labels.to(self.device)
        self.mean = context.kernels.mean.to(self.device) * (context.settings.centre == "real")
        self.validation = context.validation.features().to(self.device) - self.mean
        self.validation_labels = context.validation.labels.to(self.device)

    @abstractmethod
    def loss(self, Z: Tensor, step: int) -> Tensor:
        """Loss at features ``Z (views * n, d)`` of the synthetic views, differentiable in them."""

    @property
    def cost(self) -> tuple[int, int]:
        """Images that one step sends through the encoder, forward and backward."""
        views = len(self.labels) * (self.settings.augmentations if self.settings.augment.active else 1)
        return views * (1 if views <= self.settings.encoder_batch else 2), views

    def gradient(self, images: Tensor, step: int) -> tuple[float, Tensor]:
        """Loss at ``images (n, 3, s, s)`` in [0, 1] and its gradient with respect to them, of the same shape."""
        images = images.detach().requires_grad_()
        views = self._views(images, step)
        if len(views) <= self.settings.encoder_batch:
            loss = self.loss(self.encoder(views), step)
            (gradient,) = torch.autograd.grad(loss, images)
            return loss.item(), gradient
        value, view_gradient = self._two_passes(views.detach(), step)
        (gradient,) = torch.autograd.grad(views, images, view_gradient)
        return value, gradient

    def _two_passes(self, views: Tensor, step: int) -> tuple[float, Tensor]:
        """The same gradient in memory that does not grow with the number of views.

        First all features without a graph and the loss's gradient with respect to them, then chunk by chunk the
        features again with a graph, through which their gradient is pulled back. Exact, since the encoder treats
        images one by one.
        """
        Z = encode(self.encoder, views, self.settings.encoder_batch).requires_grad_()
        loss = self.loss(Z, step)
        (feature_gradient,) = torch.autograd.grad(loss, Z)
        parts = []
        for chunk, pull in zip(
            views.split(self.settings.encoder_batch), feature_gradient.split(self.settings.encoder_batch), strict=True
        ):
            chunk = chunk.requires_grad_()
            parts.extend(torch.autograd.grad(self.encoder(chunk), chunk, pull))
        return loss.item(), torch.cat(parts)

    def _views(self, images: Tensor, step: int) -> Tensor:
        """``(augmentations * n, 3, size, size)``, view by view; the images themselves when augmentation is off."""
        if not self.settings.augment.active:
            return images
        views = [
            augment(images, self.encoder.size, self.settings.augment, generator(self.seed, "augment", step, view))
            for view in range(self.settings.augmentations)
        ]
        return torch.cat(views)

    def probe(self, Z: Tensor) -> Tensor:
        """The ridge probe ``W (d, C)`` solved on features ``Z (views * n, d)``, centred by the real mean."""
        Y = centred_one_hot(self.labels, self.classes).repeat(len(Z) // len(self.labels), 1)
        return solve(Z - self.mean, Y, self.settings.ridge)

    @torch.no_grad()
    def validate(self, images: Tensor) -> float:
        """Top-1 in percent on the validation features of the probe solved on fixed, noise-free views of ``images``."""
        settings = self.settings.augment.without_noise()
        views = [images]
        if settings.active:
            views = [
                augment(images, self.encoder.size, settings, generator(self.seed, "validate", view))
                for view in range(_VALIDATION_VIEWS)
            ]
        Z = encode(self.encoder, torch.cat(views), self.settings.encoder_batch)
        predicted = (self.validation @ self.probe(Z)).argmax(1)
        return 100 * float((predicted == self.validation_labels).double().mean())
