"""What a step does beside the encoder's passes over features: the solve and the outer loss, by features and classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from clpdd.functional.objectives import outer_loss
from clpdd.functional.ridge import centred_one_hot, solve

from .clock import seconds
from .table import Section

__all__ = ["dimensions"]

_VIEWS, _OUTER = 3, 4096


def dimensions(device: torch.device, dims: Sequence[int], classes: Sequence[int], repeats: int) -> Section:
    """Milliseconds of the solve, the outer loss and their gradient, one image of every class."""
    title = f"Scaling over features and classes: solve and outer loss on {_OUTER} rows, {_VIEWS} views, and back"
    section = Section(title, ["features", *(f"{count} classes, ms" for count in classes)])
    for dim in dims:
        taken = seconds([_score(device, dim, count) for count in classes], device, repeats)
        section.add(dim, *(1e3 * spent for spent in taken))
    return section


def _score(device: torch.device, dim: int, classes: int) -> Callable[[], None]:
    Z = torch.randn(_VIEWS * classes, dim, device=device).requires_grad_()
    Y = centred_one_hot(torch.arange(classes, device=device).repeat(_VIEWS), classes)
    real, labels = torch.randn(_OUTER, dim, device=device), torch.randint(classes, (_OUTER,), device=device)

    def score() -> None:
        torch.autograd.grad(outer_loss(solve(Z, Y, 3.0), real, labels, "cross_entropy", 0.05), Z)

    return score
