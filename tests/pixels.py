"""Pixels as parameters: what the engine moves, without a pyramid in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clpdd.methods.problem import FeatureProblem


@dataclass(frozen=True)
class Part:
    """Some of the images."""

    rows: range
    levels: list[Tensor]


@dataclass(frozen=True)
class Pixels:
    """Images ``(n, 3, s, s)``, numbered from ``first`` on, that are their own parameters."""

    images: Tensor
    first: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self, size: int, update: bool = False) -> Iterator[Part]:
        for start in range(0, len(self), size):
            part = self.images[start : start + size]
            yield Part(range(self.first + start, self.first + start + len(part)), [part])

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        return levels[0]


def gradient(problem: FeatureProblem, images: Tensor, step: int) -> tuple[float, Tensor]:
    """Loss of a step at ``images``, those of ``problem.rows``, and its gradient with respect to their pixels."""
    parts: list[Tensor] = []
    outcome = problem.step(Pixels(images, problem.rows.start), step, lambda _, gradients: parts.extend(gradients))
    return outcome.loss.item(), torch.cat(parts)
