"""The solver against independent references, its gradient against finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from clpdd.errors import NumericalError
from clpdd.functional.ridge import centred_one_hot, solve


def problem(m: int, d: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(m, d, generator=generator, dtype=torch.float64)
    Y = centred_one_hot(torch.arange(m) % classes, classes).double()
    return Z, Y


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 6), st.floats(1e-3, 1e2), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_dual_equals_primal_equals_scikit_learn(m: int, d: int, classes: int, ridge: float, seed: int) -> None:
    Z, Y = problem(m, d, classes, seed)
    absolute = ridge * float(Z.square().sum()) / m
    dual = Z.T @ torch.linalg.solve(Z @ Z.T + absolute * torch.eye(m, dtype=torch.float64), Y)
    primal = torch.linalg.solve(Z.T @ Z + absolute * torch.eye(d, dtype=torch.float64), Z.T @ Y)
    reference = Ridge(alpha=absolute, fit_intercept=False, solver="svd").fit(Z.numpy(), Y.numpy()).coef_.T
    W = solve(Z, Y, ridge)
    torch.testing.assert_close(W, dual, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(W, primal, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(W, torch.from_numpy(reference), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("m", "d"), [(5, 9), (9, 5), (6, 6)])
def test_gradient_equals_finite_differences(m: int, d: int) -> None:
    Z, Y = problem(m, d, 3)
    assert torch.autograd.gradcheck(lambda z, y: solve(z, y, 0.3), (Z.requires_grad_(), Y.requires_grad_()))


@pytest.mark.parametrize(("m", "d"), [(5, 9), (9, 5)])
@given(scale=st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_predictions_do_not_depend_on_the_scale_of_the_features(m: int, d: int, scale: float) -> None:
    Z, Y = problem(m, d, 3)
    torch.testing.assert_close(scale * Z @ solve(scale * Z, Y, 0.1), Z @ solve(Z, Y, 0.1))


def test_float32_is_close_to_float64_and_half_is_widened() -> None:
    Z, Y = problem(30, 64, 10)
    exact = solve(Z, Y, 1e-2)
    torch.testing.assert_close(solve(Z.float(), Y.float(), 1e-2).double(), exact, rtol=1e-3, atol=1e-4)
    assert solve(Z.half(), Y.float(), 1e-2).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "d"), [(6, 9), (12, 5)])
def test_repeated_rows_without_ridge_are_refused_with_the_remedy(m: int, d: int, dtype: torch.dtype) -> None:
    Z, Y = problem(m, d, 3)
    Z = Z[:1].expand(m, d).to(dtype)
    for ridge in (0.0, 1e-20):
        with pytest.raises(NumericalError, match=f"singular at relative ridge {ridge:g}, because"):
            solve(Z, Y.to(dtype), ridge)


def test_features_that_are_not_finite_are_named() -> None:
    Z, Y = problem(4, 6, 2)
    Z[1, 2] = float("nan")
    with pytest.raises(NumericalError, match="NaN"):
        solve(Z, Y, 1.0)


def test_targets_are_centred() -> None:
    Y = centred_one_hot(torch.tensor([0, 2, 1]), 3)
    torch.testing.assert_close(Y.sum(1), torch.zeros(3))
    assert Y.argmax(1).tolist() == [0, 2, 1]
