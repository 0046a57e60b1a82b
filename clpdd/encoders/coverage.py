"""How much of its input an encoder sees: what a patch or a stride cuts off at the end of a side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Coverage", "coverage", "patch_step"]

_MOST = 64  # pixels at the end of a side that are looked at: no model of timm cuts into larger patches


@dataclass(frozen=True)
class Coverage:
    """What of an input of ``shape`` pixels changes the features.

    Attributes:
        shape: height and width of the input in pixels.
        unseen: pixels at the end of the height and of the width that change nothing.
    """

    shape: tuple[int, int]
    unseen: tuple[int, int]

    @property
    def lost(self) -> float:
        """The share of the input that is not seen, in [0, 1]."""
        (height, width), (rows, columns) = self.shape, self.unseen
        return 1 - (1 - rows / height) * (1 - columns / width)

    @property
    def whole(self) -> bool:
        """Whether all of the input is seen."""
        return self.unseen == (0, 0)


@torch.no_grad()
def coverage(features: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Coverage:
    """Measure what the last rows and columns of an input do to its features.

    Noise is replaced by other noise there; where not one bit of the features changes, the pixels are not seen.

    Args:
        features: images ``(1, 3, height, width)`` in [0, 1] -> features ``(1, d)``, the same every time.
        shape: height and width in pixels.
    """
    noise = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)).round()
    before = features(noise[:1])

    def unseen(axis: int, last: int) -> bool:
        image = noise[:1].clone()
        start = shape[axis] - last
        image.narrow(axis + 2, start, last).copy_(noise[1:].narrow(axis + 2, start, last))
        return torch.equal(features(image), before)

    def count(axis: int) -> int:
        if not unseen(axis, 1):
            return 0
        low, high = 1, min(_MOST, shape[axis])  # of the last ``low`` pixels none is seen, of ``high`` some are
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if unseen(axis, middle) else (low, middle)
        return low

    return Coverage(shape, (count(0), count(1)))


def patch_step(model: nn.Module) -> int:
    """Pixels from patch to patch: the stride of the first convolution, where a model begins with one."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    return 1 if first is None else int(first.stride[0])
