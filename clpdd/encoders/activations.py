"""Activations of a frozen model, without the copies that torch makes for the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Clip", "Rectify", "spare_copies"]

# In place, each of these first copies its input, which its derivative needs: more work than a new tensor, and no less
# memory.
_COPYING = (nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Mish, nn.SiLU)


def spare_copies(model: nn.Module) -> None:
    """Replace clipped activations by ``Clip`` and ``ReLU`` by ``Rectify``, and let others that copy work out of place.

    Clipped is ``ReLU6``, whose bounds are exact in every float type. Outputs and gradients keep every bit. The model is
    changed in place.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.ReLU6:  # no subclass, which may compute otherwise
                setattr(parent, name, Clip(0.0, 6.0, child.inplace))
            elif type(child) is nn.ReLU and child.inplace:
                setattr(parent, name, Rectify(inplace=True))
            elif type(child) in _COPYING:
                setattr(child, "inplace", False)  # noqa: B010  (what is known of a module's attributes is less)


def _quick_in_place(x: Tensor) -> bool:
    """False on CPUs in bfloat16, where work in place takes twice as long as work into another tensor."""
    return not (x.dtype == torch.bfloat16 and x.device.type == "cpu")


class Rectify(nn.ReLU):
    """``ReLU`` that overwrites its input only where that is quick."""

    def forward(self, x: Tensor) -> Tensor:
        """``max(x, 0)``, ``x`` of any shape."""
        return F.relu(x, self.inplace and _quick_in_place(x))


class Clip(nn.Module):
    """``min(max(x, low), high)``, whose gradient is taken from the output: nothing but that is kept."""

    def __init__(self, low: float, high: float, inplace: bool = False) -> None:
        super().__init__()
        self.low, self.high, self.inplace = low, high, inplace

    def forward(self, x: Tensor) -> Tensor:
        """``x`` of any shape; ``inplace`` overwrites it where that is quick and ``x`` neither a view nor a leaf that
        requires a gradient."""
        if torch.compiler.is_compiling():
            return F.hardtanh(x, self.low, self.high)
        overwrite = self.inplace and _quick_in_place(x) and not x._is_view() and not (x.is_leaf and x.requires_grad)
        clipped: Tensor = _Clipped.apply(x, self.low, self.high, overwrite)
        return clipped

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}, inplace={self.inplace}"


class _Clipped(torch.autograd.Function):
    """The derivative of a clipped value is one where the output lies between the bounds, and zero at them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float, overwrite: bool) -> Tensor:
        clipped = F.hardtanh(x, low, high, inplace=overwrite)
        if overwrite:
            ctx.mark_dirty(x)
        ctx.save_for_backward(clipped)
        ctx.bounds = low, high
        return clipped

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (clipped,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, clipped, *ctx.bounds), None, None, None
