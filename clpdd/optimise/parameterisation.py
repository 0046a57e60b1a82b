"""Image parameterisations: what is optimised, and how it becomes pixels in [0, 1] (METHOD: pyramid, colours, start)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..functional.resample import resize, resize_sum
from ..functional.seeding import generator

try:
    from ..functional.colouring import coloured as _coloured
except ImportError:  # no Triton
    _coloured = None  # type: ignore[assignment]  # where it is a function, its type is that

__all__ = ["Parameterisation", "pyramid_resolutions"]

# Square root of the colour covariance of ImageNet: optimising in these coordinates treats all colours alike.
_COLOUR_ROOT = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
# Real pixels are pulled this far from 0 and 1 before the sigmoid is undone: at the ends its gradient vanishes.
_MARGIN = 0.02
_DECOMPOSED = 64  # real images taken apart at once


def pyramid_resolutions(size: int) -> list[int]:
    """1, 2, 4, ... below ``size``, then ``size`` itself."""
    levels = [1]
    while levels[-1] * 2 < size:
        levels.append(levels[-1] * 2)
    return [*levels, size] if size > 1 else levels


class Parameterisation:
    """Images ``(n, 3, size, size)`` as ``sigmoid(2 C sum_k resize(level_k))``.

    A pyramid sums levels of 1, 2, 4, ... ``size`` pixels; plain pixels are the pyramid's last level alone.
    From noise or zero the pyramid starts with its first level and gains the next one by ``extend``: the ``k``-th level
    enters as noise scaled by ``1/k`` while those before are scaled by ``(k-1)/k``. From real images all levels are
    there at once, each holding the detail that the coarser ones lack, so that the sum is the image itself.

    Attributes:
        rows: numbers of the images that are held here, of ``total`` in the whole set.
        levels: the parameters, coarse to fine, each ``(len(rows), 3, r, r)`` float32, in ``home``.
    """

    def __init__(
        self,
        n: int,
        size: int,
        *,
        pyramid: bool,
        decorrelate: bool,
        start: Tensor | str,
        seed: int,
        device: torch.device,
        home: torch.device | None = None,
        rows: range | None = None,
        together: bool = False,
    ) -> None:
        """``start``: ``"noise"``, ``"zero"``, or real images ``(len(rows), 3, size, size)``, uint8 or float in [0, 1].

        ``home`` is where the levels are kept: ``device`` (``None``) or the CPU, whose memory is pinned for CUDA.
        ``rows`` are the images held here of the ``n`` of the set; ``None`` is all. ``together`` resizes all levels in
        two products, which is quicker on CUDA and rounds otherwise.
        """
        self._together = together
        self.total, self.rows = n, range(n) if rows is None else rows
        self.size, self.seed, self.device, self.home = size, seed, device, home or device
        self.resolutions = pyramid_resolutions(size) if pyramid else [size]
        root = torch.tensor(_COLOUR_ROOT, dtype=torch.float64)
        colour = root / root.norm(dim=0).max() if decorrelate else torch.eye(3, dtype=torch.float64)
        self._colour = colour.to(device, torch.float32)
        self._uncolour = torch.linalg.inv(colour).to(device, torch.float32)
        self._noise = start == "noise" if isinstance(start, str) else False
        self.levels: list[Tensor] = []
        if isinstance(start, str):
            self.extend()
        else:
            self.levels = self._decompose(start)

    @property
    def complete(self) -> bool:
        """Whether every level is there."""
        return len(self.levels) == len(self.resolutions)

    def extend(self) -> None:
        """Add the next level. The optimiser must start afresh afterwards."""
        k = len(self.levels) + 1
        resolution = self.resolutions[k - 1]
        shape = (3, resolution, resolution)
        if self._noise:  # drawn for the whole set: an image's noise must not depend on which others are held here
            drawn = torch.randn(self.total, *shape, generator=generator(self.seed, "pyramid", k))
            fresh = drawn[self.rows.start : self.rows.stop] / k
        else:
            fresh = torch.zeros(len(self.rows), *shape)
        earlier = [self.settle(level.detach() * ((k - 1) / k)) for level in self.levels]
        self.levels = [*earlier, self.settle(fresh)]

    def settle(self, tensor: Tensor) -> Tensor:
        """``tensor`` in ``home``."""
        if self.home.type == "cpu" and self.device.type == "cuda":
            return tensor.cpu().pin_memory()
        return tensor.to(self.home)

    def decode(self, levels: Sequence[Tensor] | None = None) -> Tensor:
        """Images ``(b, 3, size, size)`` float32 in [0, 1] of ``levels (b, 3, r, r)``, differentiable in them.

        ``None`` takes all there are, at once.
        """
        levels = [level.to(self.device) for level in self.levels] if levels is None else levels
        if self._together:
            total = resize_sum(levels, self.size)
            if _coloured is not None and total.is_cuda:
                return _coloured(total, 2 * self._colour)
            n, c = total.shape[:2]
            mixed = torch.bmm((2 * self._colour).expand(n, c, c), total.flatten(2))
            return torch.sigmoid(mixed.view_as(total))
        total = sum((resize(level, self.size) for level in levels), torch.zeros((), device=self.device))
        return torch.sigmoid(2 * torch.einsum("ij,njhw->nihw", self._colour, total))

    def _decompose(self, images: Tensor) -> list[Tensor]:
        levels = [self.settle(torch.empty(len(self.rows), 3, r, r)) for r in self.resolutions]
        for start in range(0, len(self.rows), _DECOMPOSED):
            pixels = images[start : start + _DECOMPOSED].to(self.device)
            pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
            for level, part in zip(levels, self._decompose_some(pixels), strict=True):
                level[start : start + _DECOMPOSED] = part
        return levels

    def _decompose_some(self, images: Tensor) -> list[Tensor]:
        clamped = images.clamp(_MARGIN, 1 - _MARGIN)
        rest = torch.einsum("ij,njhw->nihw", self._uncolour, torch.logit(clamped) / 2)
        levels = []
        for resolution in self.resolutions[:-1]:
            coarse = torch.nn.functional.adaptive_avg_pool2d(rest, resolution)
            rest = rest - resize(coarse, self.size)
            levels.append(coarse)
        return [*levels, rest]


def to_uint8(images: Tensor) -> Tensor:
    """Images in [0, 1] rounded to uint8 on the CPU."""
    return (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
