"""The sample-space kernel ridge solver: the inner problem of CLP-DD, solved exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import NumericalError, SingularError

__all__ = ["centred_one_hot", "solve", "solve_normal"]


def centred_one_hot(labels: Tensor, classes: int) -> Tensor:
    """Targets ``Y (m, C)``: one-hot rows with ``1/C`` subtracted, so that every row sums to zero.

    On class-balanced, centred features this stands in for an unpenalised bias column. They are made in one piece:
    integers in between would take twice the memory.
    """
    own, others = torch.tensor([1.0, 0.0], device=labels.device) - 1.0 / classes
    targets: Tensor = others.expand(*labels.shape, classes).clone()
    return targets.scatter_(-1, labels[..., None], own.expand(*labels.shape, 1))


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
        if not (torch.is_grad_enabled() and (Z.requires_grad or Y.requires_grad)):
            return _forward(Z, Y, ridge)[0]
        W: Tensor = _Solve.apply(Z, Y, ridge)
        return W


def _forward(Z: Tensor, Y: Tensor, ridge: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """``W``, the Cholesky factor of the system and, of the dual form, ``A = (K + lambda I)^{-1} Y (m, C)``."""
    m, d = Z.shape
    gram = Z @ Z.mT if m <= d else Z.mT @ Z
    factor = _factor(gram, ridge * gram.diagonal().sum() / m, ridge)  # the same trace, whichever form
    if m <= d:
        A = torch.cholesky_solve(Y, factor)
        return Z.mT @ A, factor, A
    return torch.cholesky_solve(Z.mT @ Y, factor), factor, None


class _Solve(torch.autograd.Function):
    r"""The solve with its gradient written out: one more solve with the same factor and a few thin products.

    With ``G = dL/dW``, the primal form takes ``P = (Z^T Z + \lambda I)^{-1} G`` and ``S = P W^T``, the dual form
    ``Q = (K + \lambda I)^{-1} Z G`` and ``A = (K + \lambda I)^{-1} Y``; ``r`` is the relative ridge:

    .. math:: dL/dZ = Y P^T - Z (S + S^T + \tfrac{2 r}{m} \mathrm{tr}(S) I)
                    = A (G - Z^T Q)^T - Q W^T - \tfrac{2 r}{m} \mathrm{tr}(A^T Q) Z, \quad dL/dY = Q = Z P.

    Beside the result nothing as large as ``Z`` is made, where differentiating step by step takes several of it.
    """

    @staticmethod
    def forward(context: Any, Z: Tensor, Y: Tensor, ridge: float) -> Tensor:
        W, factor, A = _forward(Z, Y, ridge)
        context.ridge = ridge
        context.save_for_backward(Z, Y, W, factor, *(() if A is None else (A,)))
        return W

    @staticmethod
    @once_differentiable
    def backward(context: Any, *outer: Any) -> Any:
        Z, Y, W, factor, *dual = context.saved_tensors
        (G,) = outer
        wanted_Z, wanted_Y, _ = context.needs_input_grad
        fall = 2 * context.ridge / len(Z)  # of lambda, with the square of the features
        if dual:
            (A,) = dual
            Q = torch.cholesky_solve(Z @ G, factor)
            pull = A @ (G - Z.mT @ Q).mT
            pull.addmm_(Q, W.mT, alpha=-1).addcmul_(Z, (A * Q).sum(), value=-fall)
            return pull, Q, None
        P = torch.cholesky_solve(G, factor)
        pull = None
        if wanted_Z:
            S = P @ W.mT
            S = S + S.mT
            S.diagonal().add_(S.diagonal().sum(), alpha=fall / 2)
            pull = (Y @ P.mT).addmm_(Z, S, alpha=-1)
        return pull, Z @ P if wanted_Y else None, None


def solve_normal(gram: Tensor, cross: Tensor, m: int, ridge: float) -> Tensor:
    """The same ``W (d, C)`` from the sums ``Z^T Z (d, d)`` and ``Z^T Y (d, C)`` over ``m`` rows, however many they are.

    Raises ``NumericalError`` as ``solve`` does.
    """
    return torch.cholesky_solve(cross, _factor(gram, ridge * gram.trace() / m, ridge))


def _factor(A: Tensor, regularisation: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of ``A + regularisation I`` for a Gram matrix ``A (n, n)``; ``ridge`` is for the message."""
    system = A + regularisation * torch.eye(len(A), dtype=A.dtype, device=A.device)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(system)
    # A rank-deficient Gram matrix can pass the factorisation by rounding: its smallest pivot then is noise.
    pivots = factor.diagonal()
    floor = torch.finfo(A.dtype).eps * len(A) * system.diagonal().max()
    if failed.item() or not bool(pivots.square().min() > floor):
        if not bool(torch.isfinite(A).all()):
            raise NumericalError("features handed to the ridge solver hold NaN or infinite values")
        raise SingularError(
            f"the {len(A)} x {len(A)} kernel is singular at relative ridge {ridge:g}, because "
            f"images repeat one another (or their features do)"
        )
    return factor
