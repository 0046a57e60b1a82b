"""The closed-form protocol: ridge regression on centred features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..errors import SingularError, remedied
from ..functional.parts import WHOLE, Part, even_factors
from ..functional.ridge import solve, solve_normal
from ..functional.targets import centred_targets
from .linear import Probes

__all__ = ["fit_ridge", "regress"]

_ROWS = 16384  # brought to float32 at once
_TARGETS = 2**24  # numbers of targets that exist at once


def fit_ridge(
    Z: Tensor, labels: Tensor, classes: int, mean: Tensor, ridge: float, parts: Sequence[Part] = WHOLE
) -> Probes:
    """The closed-form protocol: ridge regression on centred features and targets less ``1/C``.

    Args:
        Z: ``(P, m, d)``, of any float type; memory beside it does not grow with ``m``.
        labels: classes ``(P, m)`` int64, or probabilities of them ``(P, m, C)``.
        mean: ``(d,)``, subtracted from the features: the mean over the real training images, which is one vector
            whatever the set, and costs nothing at test time since it moves into the bias.
        ridge: relative to the mean squared row norm (``clpdd.functional.ridge.solve``), > 0.
        parts: of a joint encoder, whose members' features are brought to one scale (``even_factors``) for the solve:
            one ridge is for all.
    """
    mean, labels = mean.to(Z.device, torch.float32), labels.to(Z.device)
    with remedied(
        singular="raise evaluate.ridge, e.g. to 1e-3", infinite="check that the encoder is finite on these images"
    ):
        weights = torch.stack([_ridge(own, y, classes, mean, ridge, parts) for own, y in zip(Z, labels, strict=True)])
    return Probes(weights, -mean @ weights)


def regress(
    Z: Tensor,
    targets: Callable[[slice], Tensor],
    width: int,
    mean: Tensor,
    ridges: Sequence[float],
    parts: Sequence[Part] = WHOLE,
) -> dict[float, Tensor]:
    """Ridge regression of any targets on centred features, at several strengths: weights ``(d, width)`` of each.

    A ridge is relative to one row, whereas the Gram matrix grows with their number and views of a few images leave it
    nearly of lower rank: sums and solutions are float64, in which weak ridges hold too. Memory beside ``Z`` does not
    grow with ``m``.

    Args:
        Z: ``(m, d)``, of any float type.
        targets: rows -> the targets ``(b, width)`` of ``Z[rows]``; each row is asked for once.
        width: of the targets.
        mean: ``(d,)``, subtracted from the features.
        ridges: as in ``fit_ridge``; one at which the system is singular is left out.
        parts: as in ``fit_ridge``.

    Returns:
        Weights float32 by ridge, in the order of ``ridges``.

    Raises:
        SingularError: the system is singular at every ridge.
        NumericalError: the features are not finite.
    """
    (count, dim), device = Z.shape, Z.device
    exact = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    mean = mean.to(exact, torch.float64)
    found, singular = dict[float, Tensor](), list[SingularError]()
    if count <= dim:
        X, Y = Z.to(exact, torch.float64) - mean, targets(slice(0, count)).to(exact, torch.float64)
        factors = even_factors(parts, X.square().mean(0))
        solved = partial(solve, X * factors, Y)
    else:
        gram, cross = mean.new_zeros(dim, dim), mean.new_zeros(dim, width)
        height = min(_ROWS, max(1, _TARGETS // width))
        for first in range(0, count, height):
            rows = slice(first, min(first + height, count))
            X = Z[rows].to(exact, torch.float64) - mean
            gram.addmm_(X.T, X)
            cross.addmm_(X.T, targets(rows).to(exact, torch.float64))
        factors = even_factors(parts, gram.diagonal() / count)
        solved = partial(solve_normal, gram * torch.outer(factors, factors), factors[:, None] * cross, count)
    for ridge in ridges:
        try:
            found[ridge] = (factors[:, None] * solved(ridge)).to(device, torch.float32)
        except SingularError as error:
            singular.append(error)
    if not found:
        raise singular[0]
    return found


def _ridge(Z: Tensor, labels: Tensor, classes: int, mean: Tensor, ridge: float, parts: Sequence[Part]) -> Tensor:
    count, dim = Z.shape
    if count <= dim:
        X = Z.float() - mean
        factors = even_factors(parts, X.square().mean(0))
        return factors[:, None] * solve(X * factors, centred_targets(labels, classes), ridge)
    gram, cross = mean.new_zeros(dim, dim), mean.new_zeros(dim, classes)
    height = min(_ROWS, max(1, _TARGETS // classes))
    for rows, y in zip(Z.split(height), labels.split(height), strict=True):
        X = rows.float() - mean
        gram.addmm_(X.T, X)
        cross.addmm_(X.T, centred_targets(y, classes))
    factors = even_factors(parts, gram.diagonal() / count)
    even = gram * torch.outer(factors, factors)
    return factors[:, None] * solve_normal(even, factors[:, None] * cross, count, ridge)
