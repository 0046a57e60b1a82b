"""Moments summed in blocks, and the MSE they give."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clpdd.errors import NumericalError
from clpdd.functional.moments import Moments, mse_loss, stream_moments
from clpdd.functional.ridge import centred_one_hot

shapes = st.tuples(st.integers(2, 60), st.integers(1, 20), st.integers(2, 6))


def data(shape: tuple[int, int, int], seed: int, offset: float = 3.0) -> tuple[Tensor, Tensor, int]:
    """Features ``(n, d)`` off the origin and labels in which every class occurs."""
    rows, dim, classes = max(shape[0], shape[2]), shape[1], shape[2]
    rng = np.random.default_rng((seed, *shape))
    features = torch.from_numpy(rng.normal(offset, 1, (rows, dim)).astype(np.float32))
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    return features, torch.from_numpy(rng.permutation(labels)), classes


def blocks(features: Tensor, labels: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(features.split(rows), labels.split(rows), strict=True)  # type: ignore[no-untyped-call]


def close(one: Tensor, other: Tensor, tolerance: float = 1e-10) -> None:
    assert one.dtype == other.dtype
    assert float((one - other).norm()) <= tolerance * float(other.norm())


@settings(max_examples=60, deadline=None)
@given(shape=shapes, rows=st.integers(1, 70), seed=st.integers(0, 9))
def test_moments_are_numpys_for_every_block_size(shape: tuple[int, int, int], rows: int, seed: int) -> None:
    features, labels, classes = data(shape, seed)
    moments = stream_moments(blocks(features, labels, rows), classes)
    Z, Y = features.double().numpy(), np.eye(classes)[labels.numpy()]
    centred, targets = Z - Z.mean(0), Y - 1 / classes
    assert moments.n == len(Z)
    assert moments.counts.tolist() == Y.sum(0).tolist()
    close(moments.gram, torch.from_numpy(Z.T @ Z))
    close(moments.cross, torch.from_numpy(Z.T @ Y))
    close(moments.mean, torch.from_numpy(Z.mean(0)))
    close(moments.class_means, torch.from_numpy(np.stack([Z[labels.numpy() == c].mean(0) for c in range(classes)])))
    scale = float(np.square(Z).sum())  # what cancels when the mean is taken away
    np.testing.assert_allclose(moments.centred_gram.numpy(), centred.T @ centred, atol=1e-13 * scale)
    np.testing.assert_allclose(moments.centred_cross.numpy(), centred.T @ targets, atol=1e-13 * scale)


@settings(max_examples=30, deadline=None)
@given(shape=shapes, one=st.integers(1, 70), other=st.integers(1, 70))
def test_the_block_size_changes_rounding_alone(shape: tuple[int, int, int], one: int, other: int) -> None:
    features, labels, classes = data(shape, 0, offset=100.0)
    left = stream_moments(blocks(features, labels, one), classes)
    right = stream_moments(blocks(features, labels, other), classes)
    close(left.gram, right.gram)
    close(left.cross, right.cross)
    assert torch.equal(left.counts, right.counts)


def test_the_same_blocks_give_the_same_bits() -> None:
    features, labels, classes = data((500, 30, 4), 1)
    first, second = (stream_moments(blocks(features, labels, 64), classes) for _ in range(2))
    assert torch.equal(first.gram, second.gram)
    assert torch.equal(first.cross, second.cross)


def test_panels_make_a_symmetric_matrix_of_any_width() -> None:
    for dim in (1, 127, 128, 129, 300):
        features, labels, classes = data((40, dim, 3), 5)
        gram = stream_moments(blocks(features, labels, 16), classes).gram
        assert torch.equal(gram, gram.T)
        close(gram, features.double().T @ features.double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad: float) -> None:
    features, labels, classes = data((20, 3, 2), 0)
    features[7, 1] = bad
    with pytest.raises(NumericalError, match="NaN or infinite"):
        stream_moments(blocks(features, labels, 8), classes)


def plain_loss(W: Tensor, Z: Tensor, labels: Tensor, classes: int, mean: Tensor | None, centre: bool) -> Tensor:
    """The slow oracle: every row, float64."""
    Z = Z.double() if mean is None else Z.double() - mean.double()
    Y = torch.eye(classes, dtype=torch.float64)[labels] - (1 / classes if centre else 0)
    return (Z @ W.double() - Y).square().sum(1).mean()


@settings(max_examples=60, deadline=None)
@given(shape=shapes, seed=st.integers(0, 9), mean=st.sampled_from(["none", "own", "any"]), centre=st.booleans())
def test_mse_and_its_gradient_are_those_over_all_rows(
    shape: tuple[int, int, int], seed: int, mean: str, centre: bool
) -> None:
    features, labels, classes = data(shape, seed)
    moments = stream_moments(blocks(features, labels, 16), classes)
    rng = np.random.default_rng(seed)
    W = torch.from_numpy(rng.normal(size=(features.shape[1], classes))).requires_grad_()
    taken = {"none": None, "own": moments.mean.float(), "any": torch.from_numpy(rng.normal(size=features.shape[1]))}[
        mean
    ]
    loss = mse_loss(W, moments.gram, moments.cross, moments.counts, mean=taken, centre_targets=centre)
    expected = plain_loss(W, features, labels, classes, taken, centre)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, W)
    (wanted,) = torch.autograd.grad(expected, W)
    np.testing.assert_allclose(gradient.numpy(), wanted.numpy(), atol=1e-9 * float(wanted.abs().max()))


def test_mse_takes_float32_weights_and_gives_them_a_float32_gradient() -> None:
    features, labels, classes = data((40, 6, 3), 2)
    moments = stream_moments(blocks(features, labels, 16), classes)
    W = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mse_loss(W, moments.gram, moments.cross, moments.counts, mean=moments.mean).backward()  # type: ignore[no-untyped-call]
    assert W.grad is not None
    assert W.grad.dtype == torch.float32


def test_mse_is_least_at_the_least_squares_solution() -> None:
    features, labels, classes = data((80, 5, 3), 3)
    moments: Moments = stream_moments(blocks(features, labels, 16), classes)
    Z = features.double() - moments.mean
    best = torch.linalg.lstsq(Z, centred_one_hot(labels, classes).double()).solution.requires_grad_()
    loss = mse_loss(best, moments.gram, moments.cross, moments.counts, mean=moments.mean)
    (gradient,) = torch.autograd.grad(loss, best)
    assert float(gradient.abs().max()) < 1e-6
