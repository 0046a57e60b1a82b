"""The sample-space kernel ridge solver: the inner problem of CLP-DD, solved exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import NumericalError

__all__ = ["centred_one_hot", "solve", "solve_normal"]


def centred_one_hot(labels: Tensor, classes: int) -> Tensor:
    """Targets ``Y (m, C)``: one-hot rows with ``1/C`` subtracted, so that every row sums to zero.

    On class-balanced, centred features this stands in for an unpenalised bias column.
    """
    return torch.nn.functional.one_hot(labels, classes).float() - 1.0 / classes


def solve(Z: Tensor, Y: Tensor, ridge: float) -> Tensor:
    r"""Weights of the linear probe that ridge regression fits to ``(Z, Y)``.

    .. math:: W = Z^T (Z Z^T + \lambda I)^{-1} Y = (Z^T Z + \lambda I)^{-1} Z^T Y,
              \quad \lambda = \mathrm{ridge} \cdot \mathrm{tr}(Z Z^T) / m

    The inner problem of CLP-DD (arXiv 2605.07194). The dual form (an ``m x m`` system) is used where ``m <= d``, the
    primal form (``d x d``) elsewhere; both give the same ``W``. Solved by Cholesky in at least float32 and
    differentiable in ``Z`` and ``Y``. Equivalent to ``sklearn.linear_model.Ridge(alpha=lambda, fit_intercept=False)``.

    Args:
        Z: features ``(m, d)``; half precision is widened to float32.
        Y: targets ``(m, C)``.
        ridge: relative regularisation in ``[0, inf)``. Relative to the mean squared row norm, so that one value
            serves every encoder; 0 is least squares and needs linearly independent rows (or columns).

    Returns:
        ``W (d, C)`` in the precision of the solve.

    Raises:
        NumericalError: the system is singular, or the features are not finite.
    """
    dtype = torch.promote_types(torch.promote_types(Z.dtype, Y.dtype), torch.float32)
    with torch.autocast(Z.device.type, enabled=False):
        Z, Y = Z.to(dtype), Y.to(dtype)
        m, d = Z.shape
        gram = Z @ Z.mT if m <= d else Z.mT @ Z
        regularisation = ridge * gram.diagonal().sum() / m  # the same trace, whichever form
        if m <= d:
            return Z.mT @ _solve_positive(gram, regularisation, Y)
        return _solve_positive(gram, regularisation, Z.mT @ Y)


def solve_normal(gram: Tensor, cross: Tensor, m: int, ridge: float) -> Tensor:
    """The same ``W (d, C)`` from the sums ``Z^T Z (d, d)`` and ``Z^T Y (d, C)`` over ``m`` rows, however many they are.

    Raises ``NumericalError`` as ``solve`` does.
    """
    return _solve_positive(gram, ridge * gram.trace() / m, cross)


def _solve_positive(A: Tensor, regularisation: Tensor, B: Tensor) -> Tensor:
    """``(A + regularisation I)^{-1} B`` for a Gram matrix ``A (n, n)`` and ``B (n, C)``."""
    system = A + regularisation * torch.eye(len(A), dtype=A.dtype, device=A.device)
    factor, failed = torch.linalg.cholesky_ex(system)
    # A rank-deficient Gram matrix can pass the factorisation by rounding: its smallest pivot then is noise.
    pivots = factor.diagonal()
    floor = torch.finfo(A.dtype).eps * len(A) * system.diagonal().max()
    if failed.item() or not bool(pivots.square().min() > floor):
        if not bool(torch.isfinite(A).all()):
            raise NumericalError(
                "features handed to the ridge solver hold NaN or infinite values: lower distill.learning_rate, or "
                "check that the encoder is finite on these images"
            )
        raise NumericalError(
            f"the {len(A)} x {len(A)} kernel is singular at relative ridge {_relative(A, regularisation):.1e}: images "
            f"repeat one another (or their features do); raise the ridge (distill.ridge, evaluate.ridge), e.g. to 1e-3"
        )
    return torch.cholesky_solve(B, factor)


def _relative(A: Tensor, regularisation: Tensor) -> float:
    return (regularisation / (A.trace() / len(A)).clamp_min(torch.finfo(A.dtype).tiny)).item()
