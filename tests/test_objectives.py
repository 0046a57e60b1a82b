"""Outer losses against hand-made values and each other."""

from __future__ import annotations

import math

import pytest
import torch

from clpdd.functional.objectives import outer_loss

LABELS = torch.tensor([0, 1, 2, 0])


def probe(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 3, generator=generator).double(), torch.randn(4, 5, generator=generator).double()


def test_an_ignorant_probe_costs_log_of_the_number_of_classes() -> None:
    _, Z = probe()
    zero = torch.zeros(5, 3).double()
    assert float(outer_loss(zero, Z, LABELS, "cross_entropy", 0.1)) == pytest.approx(math.log(3))
    assert float(outer_loss(zero, Z, LABELS, "mse", 0.1)) == pytest.approx(2 / 3)  # ||one-hot - 1/3||^2


def test_temperature_divides_the_logits() -> None:
    W, Z = probe()
    hot = outer_loss(W, Z, LABELS, "cross_entropy", 0.25)
    torch.testing.assert_close(hot, outer_loss(4 * W, Z, LABELS, "cross_entropy", 1.0))


def test_cosine_does_not_see_lengths() -> None:
    W, Z = probe()
    stretched = outer_loss(
        W * torch.tensor([3.0, 1.0, 0.2]), Z * torch.tensor([[2.0], [5.0], [0.1], [1.0]]), LABELS, "cosine", 0.1
    )
    torch.testing.assert_close(stretched, outer_loss(W, Z, LABELS, "cosine", 0.1))


@pytest.mark.parametrize("objective", ["cross_entropy", "cosine", "mse"])
def test_gradient_equals_finite_differences(objective: str) -> None:
    W, Z = probe()
    assert torch.autograd.gradcheck(lambda w: outer_loss(w, Z, LABELS, objective, 0.5), W.requires_grad_())


def test_unknown_objective_is_refused() -> None:
    W, Z = probe()
    with pytest.raises(ValueError, match=r"objective is .hinge.; it must be cross_entropy"):
        outer_loss(W, Z, LABELS, "hinge", 0.1)
