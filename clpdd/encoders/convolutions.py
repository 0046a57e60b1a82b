"""Depthwise convolutions of a frozen model, made quick on the way back in bfloat16 on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Depthwise", "widen_depthwise"]


def widen_depthwise(model: nn.Module) -> None:
    """Wrap strided and dilated depthwise convolutions in ``Depthwise``. The model is changed in place.

    Of PyTorch's and timm's own classes, ``Conv2d`` and ``Conv2dSame``; a subclass may compute otherwise.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and type(child) in (nn.Conv2d, Conv2dSame) and _is_slow(child):
                setattr(parent, name, Depthwise(child))


def _is_slow(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels == module.out_channels > 1
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return depthwise and plain and (max(module.stride) > 1 or max(module.dilation) > 1)


class Depthwise(nn.Module):
    """A convolution whose gradient, under autocast to bfloat16 on a CPU, is taken in float32.

    There oneDNN has no quick kernel for the gradient of a depthwise convolution's input where the stride or the
    dilation is not 1: in bfloat16 it takes 2 to 20 times as long as in float32. The output is that of the convolution,
    bit by bit, and so is the gradient in every other precision and on every other device.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """``(b, c, h', w')`` of ``(b, c, h, w)``."""
        own = self.convolution
        if not self._widens(x):
            made: Tensor = own(x)
            return made
        padding = own.padding
        if isinstance(own, Conv2dSame):
            x, padding = pad_same(x, list(own.kernel_size), list(own.stride), list(own.dilation)), (0, 0)
        made = _Widened.apply(x, own.weight, own.bias, own.stride, padding, own.dilation, own.groups)
        return made

    def _widens(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return False
        frozen = not any(weight.requires_grad for weight in self.convolution.parameters())
        return frozen and torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.requires_grad


class _Widened(torch.autograd.Function):
    """A convolution with frozen weights: of its input the shape alone is needed on the way back."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *how = inputs
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.how = x.shape, x.dtype, how

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.how
        x = torch.empty(ctx.shape, memory_format=torch.channels_last)  # its layout is asked for, its values are not
        wide, _, _ = torch.ops.aten.convolution_backward(
            gradient.float(), x, weight.float(), None, stride, padding, dilation, False, [0, 0], groups,
            [True, False, False],
        )  # fmt: skip
        return wide.to(ctx.dtype), None, None, None, None, None, None
