"""What images stand for: one class each, or probabilities of the classes, fixed or learned along with the images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .adam import adam_update
from .gradients import gradients
from .ridge import centred_one_hot

__all__ = ["Targets", "as_targets", "centred_targets", "mean_predictions"]

_SURE = 0.99  # the share of the own class that learned labels start with: at 1 their gradient would be zero


def as_targets(labels: Tensor, classes: int) -> Tensor:
    """``(..., C)`` float32: one-hot rows of classes ``(...,)`` int64; probabilities ``(..., C)`` stay as they are."""
    return labels.float() if labels.is_floating_point() else F.one_hot(labels, classes).float()


def centred_targets(labels: Tensor, classes: int) -> Tensor:
    """``as_targets`` less ``1/C``: of classes ``centred_one_hot``."""
    if labels.is_floating_point():
        return labels.float() - 1.0 / classes
    return centred_one_hot(labels, classes)


@torch.no_grad()
def mean_predictions(weights: Tensor, bias: Tensor, Z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """What a linear teacher takes the images of every class for, on average: probabilities ``(C, C)`` float32.

    Args:
        weights, bias: ``(d, C)`` and ``(C,)``.
        Z, labels: features ``(N, d)`` and classes ``(N,)``, none of them without rows.
        temperature: divides the teacher's logits, > 0.
    """
    classes = len(bias)
    sums = torch.zeros(classes, classes, dtype=torch.float64)
    for rows, own in zip(Z.split(8192), labels.split(8192), strict=True):
        sums.index_add_(0, own, torch.softmax((rows.float() @ weights + bias) / temperature, 1).double())
    return (sums / sums.sum(1, keepdim=True)).float()


class Targets:
    """Targets of ``n`` images as probabilities ``(n, C)``; learned ones are the softmax of logits under Adam.

    Attributes:
        learned: whether ``update`` changes them.
        logits: ``(n, C)`` float32 of learned targets, a leaf that takes gradients; else ``None``.
    """

    def __init__(self, start: Tensor, learned: bool) -> None:
        self.learned = learned
        self._fixed = start
        self.logits: Tensor | None = None
        if learned:
            classes = start.shape[1]
            self.logits = (start * _SURE + (1 - start) * (1 - _SURE) / (classes - 1)).log().requires_grad_()
            self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)
            self._updates = torch.zeros(())
        self._gradient: Tensor | None = None

    @property
    def probabilities(self) -> Tensor:
        """``(n, C)`` float32, rows sum to one; differentiable in ``logits``."""
        return self._fixed if self.logits is None else self.logits.softmax(1)

    def note(self, loss: Tensor) -> Tensor:
        """Take and keep the gradient of ``loss`` with respect to the logits; its graph stays. Whether it is finite."""
        assert self.logits is not None
        (self._gradient,) = gradients(loss, [self.logits], retain=True)
        return torch.isfinite(self._gradient).all()

    @torch.no_grad()
    def update(self, learning_rate: float) -> None:
        """Adam's update along the gradient that was noted last; nothing on fixed targets."""
        if self.logits is None:
            return
        assert self._gradient is not None
        adam_update(
            [self.logits], [self._gradient], [self._mean], [self._square], [self._updates], learning_rate, fused=False
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that ``restore`` needs; nothing of fixed targets."""
        if self.logits is None:
            return {}
        state = {"logits": self.logits, "mean": self._mean, "square": self._square, "updates": self._updates}
        return {f"labels.{name}": tensor for name, tensor in state.items()}

    def restore(self, named: dict[str, Tensor]) -> None:
        """Take the tensors of an earlier state."""
        if self.logits is None:
            return
        device = self.logits.device
        self.logits = named["labels.logits"].to(device, copy=True).requires_grad_()
        self._mean, self._square = (named[f"labels.{name}"].to(device, copy=True) for name in ("mean", "square"))
        self._updates = named["labels.updates"].clone()
