"""A frozen model's batch norms folded into the convolutions before them: the same outputs with fewer operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

__all__ = ["fold_batch_norms"]

_TOLERANCE = 1e-4
"""Largest difference of any output, relative to their root mean square; float32 rounding alone gives about 1e-6."""


@torch.no_grad()
def fold_batch_norms(model: nn.Module, example: Tensor) -> int:
    """Fold every batch norm that follows a convolution into that convolution, in place: its weights are replaced.

    ``gamma (W x + b - mean) / sqrt(var + eps) + beta`` is a convolution again (Jacob et al., arXiv 1712.05877, eq. 14).
    Pairs are found by what one pass does, and not by names: a ``BatchNorm2d``, or timm's ``BatchNormAct2d``, whose
    input is what a ``Conv2d`` gave, each of them called once. Of the former nothing is left, of the latter its
    activation.

    The outputs for ``example`` are compared before and after. Where they differ, a pair is folded only if it alone
    changes nothing, so that a model which uses a convolution's output elsewhere, or its weights otherwise, stays as it
    was.

    Args:
        model: in evaluation mode, without gradients of its parameters.
        example: an input of ``model``, random: on a constant one a wrong fold could go unnoticed.

    Returns:
        The number of batch norms folded.
    """
    if not any(_foldable(module) for module in model.modules()):
        return 0
    pairs = _pairs(model, example)
    if not pairs:
        return 0
    expected = _outputs(model, example)
    if _agree(model, example, expected, pairs):
        return len(pairs)
    return sum(_agree(model, example, expected, [pair]) for pair in pairs)


@dataclass(frozen=True)
class _Pair:
    """A convolution and the batch norm after it, with where the latter is registered."""

    convolution: nn.Conv2d
    norm: nn.BatchNorm2d | BatchNormAct2d
    parent: nn.Module
    name: str

    def fold(self) -> None:
        norm, convolution = self.norm, self.convolution
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, mean = convolution.weight.double(), norm.running_mean.double()
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.double()
        bias = -mean if convolution.bias is None else convolution.bias.double() - mean
        shift = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
        kind = convolution.weight.dtype
        folded = (weight * scale.view(-1, 1, 1, 1)).to(kind)
        # the same layout in memory, which decides the kernels
        convolution.weight = _frozen(torch.empty_like(convolution.weight).copy_(folded))
        convolution.bias = _frozen(shift.to(kind))
        setattr(self.parent, self.name, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _pairs(model: nn.Module, example: Tensor) -> list[_Pair]:
    """Convolutions and batch norms that one pass calls right after each other."""
    made: dict[int, tuple[nn.Conv2d, Tensor, int]] = {}  # of the tensor: held, so that no other takes its number
    calls: dict[nn.Module, int] = {}
    found: list[tuple[nn.Conv2d, nn.Module]] = []

    def note_output(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d) and "weight" in module._parameters:  # not one that is computed at every pass
            made[id(output)] = module, output, output._version

    def note_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        source = made.get(id(inputs[0])) if inputs else None
        if source is not None and source[2] == inputs[0]._version:  # not changed in place since
            found.append((source[0], module))

    hooks = [m.register_forward_hook(note_output) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(note_input) for m in model.modules() if _foldable(m)]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    places = {child: (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    return [
        _Pair(convolution, norm, *places[norm])  # type: ignore[arg-type]
        for convolution, norm in found
        if calls[convolution] == calls[norm] == 1
    ]


def _foldable(module: nn.Module) -> bool:
    """Whether a module is a batch norm that uses the statistics of its training."""
    known = type(module) in (nn.BatchNorm2d, BatchNormAct2d)
    return known and not module.training and module.running_mean is not None


def _outputs(model: nn.Module, example: Tensor) -> Tensor:
    outputs: Tensor = model(example)
    return outputs


def _agree(model: nn.Module, example: Tensor, expected: Tensor, pairs: Sequence[_Pair]) -> bool:
    """Fold ``pairs`` if the outputs stay what they were, else leave everything as it was."""
    before = [(pair, pair.convolution.weight, pair.convolution.bias) for pair in pairs]
    for pair in pairs:
        pair.fold()
    try:
        difference = (_outputs(model, example) - expected).abs().max().item()
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        difference = math.inf  # a forward that asks for the batch norm itself
    if difference <= _TOLERANCE * expected.square().mean().sqrt().item():
        return True
    for pair, weight, bias in before:
        pair.convolution.weight = weight
        pair.convolution.bias = bias
        setattr(pair.parent, pair.name, pair.norm)
    return False
