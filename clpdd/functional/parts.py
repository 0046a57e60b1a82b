"""Columns of features that are judged apart: all those of one encoder, or of several joined each member's own."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["WHOLE", "Part", "directions", "even_factors", "parts_of", "recorded_parts", "weighted"]

Value = TypeVar("Value", Tensor, float)


@dataclass(frozen=True)
class Part:
    """Neighbouring columns, and their share in (0, 1] of the loss; the shares of all parts add up to 1."""

    share: float
    columns: slice


WHOLE = (Part(1.0, slice(None)),)
"""The parts of a single encoder."""


def parts_of(members: Iterable[tuple[int, float]]) -> tuple[Part, ...]:
    """Parts of members given as (columns, weight > 0), in order."""
    members = list(members)
    total = sum(weight for _, weight in members)
    parts, start = [], 0
    for dim, weight in members:
        parts.append(Part(weight / total, slice(start, start + dim)))
        start += dim
    return tuple(parts)


def recorded_parts(encoder: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts of an encoder by its record, ``Encoder.describe()``."""
    members = encoder.get("members")
    return WHOLE if members is None else parts_of((member["dim"], member["weight"]) for member in members)


def weighted(parts: Sequence[Part], value: Callable[[slice], Value]) -> Value:
    """``value`` of each part's columns, averaged by the shares; of one part it is that value to the last bit."""
    return reduce(operator.add, (part.share * value(part.columns) for part in parts))


def even_factors(parts: Sequence[Part], energy: Tensor) -> Tensor:
    """Factors ``(d,)`` after which a part's features have its share as their mean squared length.

    Where one measure is taken over all columns (a distance, a ridge), members then count as they do in the loss,
    whatever the scale of their features. Ones for a single part.

    Args:
        energy: ``(d,)``, mean squares of the centred features.
    """
    factors = torch.ones_like(energy)
    for part in parts if len(parts) > 1 else ():
        total = energy[part.columns].sum()
        if total > 0:
            factors[part.columns] = (part.share / total).sqrt()
    return factors


def directions(Z: Tensor, parts: Sequence[Part]) -> Tensor:
    """Rows ``(b, d)`` whose products are cosines: of one part its own, of several their average by the shares."""
    return torch.cat([F.normalize(Z[:, part.columns], dim=1) * part.share**0.5 for part in parts], 1)
