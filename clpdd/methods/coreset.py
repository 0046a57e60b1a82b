"""What coresets share: the walk through the classes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..features.by_class import ClassFeatures
from ..functional.seeding import generator
from ..optimise.context import Context
from .chosen import chosen_set, refuse_small_classes

__all__ = ["Coreset"]


class Coreset(ABC):
    """A method that chooses the images of every class by the features of that class alone."""

    name: str

    @abstractmethod
    def choose(self, Z: Tensor, count: int, generator: torch.Generator) -> list[int]:
        """``count`` rows of a class's features ``(n, d)`` float64, all different; random numbers from the generator."""

    @abstractmethod
    def numbers(self, n: int, d: int, count: int) -> int:
        """Float64 numbers that ``choose`` holds beside the features, see ``functional.coreset_memory``."""

    def __call__(self, context: Context) -> DistilledSet:
        """The chosen images. Raises ``DataError`` where a class has too few, ``ResourceError`` where memory has."""
        dim, wanted = context.train.dim, context.per_class
        features = ClassFeatures(
            context.train,
            context.kernels,
            context.encoder.parts,
            self.name,
            lambda label, n: self.numbers(n, dim, wanted[label]),
        )
        refuse_small_classes(context, features.counts)
        rows: list[int] = []
        for label, members, Z in features:
            own = generator(context.seed, self.name, label)
            rows += members[self.choose(Z, context.per_class[label], own)].tolist()
        return chosen_set(context, rows)
