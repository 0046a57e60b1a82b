"""Adam's update gets gradients and moments laid out as the parameters are, or refuses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from clpdd.config.augment import AugmentSettings
from clpdd.functional.adam import adam_update
from clpdd.functional.gradients import gradients
from clpdd.functional.image_gradient import Views, step
from clpdd.functional.targets import Targets
from clpdd.optimise.images import ImageState, StateChunk
from clpdd.optimise.parameterisation import Parameterisation

CPU = torch.device("cpu")


@pytest.mark.parametrize("pyramid", [True, False])
@pytest.mark.parametrize(("batch", "kept"), [(1000, 0), (4, 0), (4, 8)])
def test_every_gradient_of_a_step_has_the_strides_of_its_parameter(pyramid: bool, batch: int, kept: int) -> None:
    """On CUDA the fused update refuses others; at CPUs it updates the wrong elements."""
    made = Parameterisation(7, 12, pyramid=pyramid, decorrelate=True, start="noise", seed=0, device=CPU)
    while not made.complete:
        made.extend()
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def update(chunk: StateChunk, found: Sequence[Tensor]) -> None:
        seen.extend((level.stride(), one.stride()) for level, one in zip(chunk.levels, found, strict=True))

    weights = torch.linspace(-1, 1, 3 * 12 * 12 * 5).sin().view(-1, 5)
    views = Views(7, 2, 12, AugmentSettings(), 0, ("augment", 0), CPU)
    step(lambda x: x.flatten(1) @ weights, ImageState(made), views, lambda Z: Z.square().mean(), batch, update, kept)
    assert len(seen) >= len(made.levels)
    assert all(parameter == gradient for parameter, gradient in seen)


def test_the_gradient_of_learned_labels_has_their_strides() -> None:
    targets = Targets(torch.eye(4), learned=True)
    targets.note((targets.probabilities.T @ torch.arange(12.0).view(4, 3)).square().sum())
    assert targets._gradient is not None
    assert targets.logits is not None
    assert targets._gradient.stride() == targets.logits.stride()
    targets.update(0.1)


def test_a_gradient_is_laid_out_as_its_input_whatever_its_way_back() -> None:
    inputs = [torch.rand(2, 3, 4, 5).requires_grad_(), torch.rand(5, 4, 3, 2).permute(3, 2, 1, 0).requires_grad_()]
    output = sum(one.permute(0, 2, 3, 1).reshape(-1).square().sum() for one in inputs)
    assert isinstance(output, Tensor)
    for one, found in zip(inputs, gradients(output, inputs), strict=True):
        assert found.stride() == one.stride()
        torch.testing.assert_close(found, 2 * one.detach())


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(torch.ones(2, 4, 4, 3).permute(0, 3, 1, 2), id="strides"),
        pytest.param(torch.ones(2, 3, 4, 4, dtype=torch.float64), id="dtype"),
        pytest.param(torch.ones(2, 3, 4, 5), id="shape"),
        pytest.param(torch.ones(2, 3, 4, 4, device="meta"), id="device"),
    ],
)
@pytest.mark.parametrize("place", ["gradient", "mean", "square"])
@pytest.mark.parametrize("fused", [True, False])
def test_what_a_fused_kernel_would_misread_is_refused(wrong: Tensor, place: str, fused: bool) -> None:
    parameter = torch.zeros(2, 3, 4, 4)
    given = {name: torch.ones_like(parameter) for name in ("gradient", "mean", "square")} | {place: wrong}
    with pytest.raises(ValueError, match="shape, strides, dtype and device"):
        adam_update(
            [parameter], [given["gradient"]], [given["mean"]], [given["square"]], [torch.zeros(())], 0.1, fused=fused
        )
    assert not parameter.any()
