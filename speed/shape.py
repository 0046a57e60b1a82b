"""The size of a problem, and everything a step needs at that size, made of random numbers: speed ignores their values.

Imports torch, timm and numpy alone, so that it runs on a machine that has nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import timm
import torch
from torch import Tensor

import clpdd.encoders.architectures  # noqa: F401  (registers the shipped encoder's architecture)
from clpdd.distributed.group import ALONE, Ranks
from clpdd.encoders.calling import batch_that_fits, resolve_precision
from clpdd.encoders.encoder import Encoder
from clpdd.functional.image_gradient import Views
from clpdd.functional.matching import classifier_gradient, match_loss, random_classifier
from clpdd.functional.objectives import attach, blocked_gradient, outer_loss
from clpdd.functional.ridge import centred_one_hot, solve
from clpdd.functional.seeding import generator
from clpdd.optimise.images import ImageState, state_home
from clpdd.optimise.parameterisation import Parameterisation, pyramid_resolutions
from clpdd.optimise.passes import Need, Plan, divided, encoder_of, measured, starts_slowly
from clpdd.optimise.sharding import joined
from clpdd.runtime.machine import device_bytes

__all__ = ["DSA", "SHAPES", "Shape", "Workload"]


@dataclass(frozen=True)
class DSA:
    """The augmentation of the field: flip, crop and noise."""

    flip: float = 0.5
    crop: bool = True
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    noise: float = 0.0
    noise_mean: float = 0.5
    noise_std: float = 0.2


@dataclass(frozen=True)
class Shape:
    """``per_class`` images of ``classes``, of ``size`` pixels, ``views`` views each, scored on ``outer`` features."""

    model: str
    size: int
    classes: int
    views: int
    real: int = 50_000
    outer: int = 4096
    batch: int | None = None  # views per encoder pass; what fits when None
    per_class: int = 1

    @property
    def images(self) -> int:
        """Number of synthetic images."""
        return self.classes * self.per_class

    def with_images(self, count: int, *, classes: int | None = None) -> Shape:
        """The same with another number of images: one of each class, or as many of each of ``classes``."""
        classes = classes or count
        return replace(self, classes=classes, per_class=count // classes)


SHAPES = {
    "small": Shape("clpdd_resnet14", 64, 100, 3),
    "vit": Shape("vit_base_patch16_224", 224, 24, 1, batch=12),
    "imagenet1k": Shape("vit_base_patch16_224", 224, 1000, 3, real=1_281_167),
}
"""By name: minutes on a CPU; the proportions of ImageNet-1K on a CPU; ImageNet-1K, for a GPU."""


class Workload:
    """One step of CLP-DD and one of LGM at a shape, on the library's own engine.

    Attributes:
        ranks: this process among those that share the step; it holds its part of the images and real features.
        encoder: the model with random weights.
        plan: how a step's views are cut into passes, as distillation would in ``memory`` GiB.
        rough: as of ``clpdd.methods.problem.FeatureProblem``.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        precision: str = "auto",
        ranks: Ranks = ALONE,
        memory: float = 0.0,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.shape, self.device, self.ranks, self.memory = shape, device, ranks, memory
        self.precision, self.compiled = precision, compiled
        self.rough = device.type == "cuda" and resolve_precision(precision, device) == torch.bfloat16
        model = timm.create_model(shape.model, num_classes=0)
        self.encoder = Encoder(shape.model, model, shape.size).to(device)
        self.labels = torch.arange(shape.classes, device=device).repeat(shape.per_class * shape.views)

    @cached_property
    def plan(self) -> Plan:
        """Made anew in every run."""
        shape = self.shape
        if self.device.type != "cuda":
            return Plan(shape.batch or batch_that_fits(self.encoder, self.precision))
        found, images = measured(self.encoder, self.precision), self.images
        need = Need(found.graph, found.work + -(-images.carried // shape.views))
        weights = sum(tensor.nbytes for tensor in [*self.encoder.parameters(), *self.encoder.buffers()])
        held = self._real[0].nbytes if self._real[0].device == self.device else 0
        beside = 2 * weights + images.on_device + held + 2**29
        room = device_bytes(self.device, self.memory) - beside
        plan = Plan(*divided(len(images), shape.views, need, room, shape.batch), compiled=self.compiled)
        return replace(plan, replayed=starts_slowly(plan, len(images) * shape.views))

    @cached_property
    def encode(self) -> Callable[[Tensor], Tensor]:
        """The encoder in passes as planned."""
        return encoder_of(self.encoder, self.precision, self.plan, len(self.images) * self.shape.views)

    @property
    def batch(self) -> int:
        """Views per encoder pass."""
        return self.plan.batch

    @cached_property
    def images(self) -> ImageState:
        """Complete pyramids."""
        n, size, own = self.shape.images, self.shape.size, self.ranks.span(self.shape.images)
        home = state_home(len(own), pyramid_resolutions(size), self.device, "auto", self.memory)
        made = Parameterisation(
            n,
            size,
            pyramid=True,
            decorrelate=True,
            start="zero",
            seed=0,
            device=self.device,
            home=home,
            rows=own,
            together=self.rough,
        )
        while not made.complete:
            made.extend()
        return ImageState(made)

    def views(self, number: int) -> Views:
        """The views of a step."""
        shape = self.shape
        return Views(shape.images, shape.views, shape.size, DSA(), 0, ("augment", number), self.device, self.rough)

    # -- CLP-DD ----------------------------------------------------------------------------------------------------

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        rows = len(self.ranks.span(self.shape.real))
        dtype = torch.float32 if rows * self.encoder.dim * 4 < 2**31 else torch.float16
        short = self.memory and rows * self.encoder.dim * dtype.itemsize > 0.2 * device_bytes(self.device, self.memory)
        where = torch.device("cpu") if short else self.device  # as ``clpdd.optimise.real_features`` decides
        features = torch.empty(rows, self.encoder.dim, dtype=dtype, device=where).normal_()
        return features, torch.randint(self.shape.classes, (rows,), device=where)

    def closed_form(self, number: int) -> Callable[[Tensor], Tensor]:
        """The loss of CLP-DD: solve, and score on a mini-batch of resident real features."""
        features, labels = self._real
        outer = len(self.ranks.span(self.shape.outer))
        rows = torch.randint(len(labels), (outer,), generator=generator(0, "outer", number)).to(features.device)

        def loss(Z: Tensor) -> Tensor:
            Y = centred_one_hot(self.labels, self.shape.classes)
            W = solve(joined(self.ranks, Z, self.shape.images), Y, 3.0)
            real = features.index_select(0, rows).to(self.device).float(), labels[rows].to(self.device)
            if self.ranks.size == 1:
                return outer_loss(W, *real, "cross_entropy", 0.05)
            value, pull = self.ranks.all_reduce(*blocked_gradient(W, [real], self.shape.outer, "cross_entropy", 0.05))
            return attach(W, value, pull)

        return loss

    # -- LGM -------------------------------------------------------------------------------------------------------

    @cached_property
    def _decoded(self) -> Tensor:
        """Real images of one step, decoded already: loading is not counted."""
        count, size = self.shape.images * self.shape.views, self.shape.size
        return torch.randint(256, (count, 3, size, size), dtype=torch.uint8)

    def matching(self, number: int) -> Callable[[Tensor], Tensor]:
        """The loss of LGM: a fresh classifier, a fresh real batch augmented and encoded, two gradients compared."""
        weight, bias = (
            part.to(self.device) for part in random_classifier(self.shape.classes, self.encoder.dim, 0, number)
        )
        real = self._real_gradient(number, weight, bias)
        return lambda Z: match_loss(real, classifier_gradient(Z, self.labels, weight, bias))

    @torch.no_grad()
    def _real_gradient(self, number: int, weight: Tensor, bias: Tensor) -> Tensor:
        images = self._decoded
        path = ("augment real", number)
        views = Views(len(images), 1, self.shape.size, DSA(), 0, path, self.device, self.rough)
        parts = []
        for start in range(0, len(images), self.batch):
            pixels = images[start : start + self.batch].to(self.device).float() / 255
            parts.append(self.encode(views.of(pixels, range(start, start + len(pixels)))))
        return classifier_gradient(torch.cat(parts), self.labels, weight, bias)

    # -- what no step can do without -------------------------------------------------------------------------------

    def bare(self, batch: int | None = None) -> None:
        """The encoder's passes alone over as many random views: forward and input gradient, in passes as planned."""
        total, batch = len(self.images) * self.shape.views, batch or self.batch
        kept = self.plan.kept
        pixels = torch.rand(min(batch, total), 3, self.shape.size, self.shape.size, device=self.device)
        for start in range(0, total, batch):
            part = pixels[: total - start]
            if total > batch and start + len(part) > kept:
                with torch.no_grad():
                    self.encode(part)
            leaf = part.requires_grad_()
            torch.autograd.grad(self.encode(leaf).sum(), leaf)
