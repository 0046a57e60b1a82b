"""From a decoded picture to the pixels that an encoder is given: resize, then crop or pad, as timm does it.

Torch is not imported: processes that decode need none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError

__all__ = ["Pixels", "Preprocess"]

Pixels = NDArray[np.uint8]

_MAX_RESIZED = 2**27
_MODES = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """The pixels of timm's transform for evaluation, without torch.

    Attributes:
        resize: pixels after resizing: the shorter side, or ``(height, width)`` for an input that is not square.
        crop: pixels that are kept, of both sides or ``(height, width)``.
        interpolation: nearest | bilinear | bicubic | lanczos; anything else means bicubic.
        squash: bring both sides to ``resize``, whatever the proportions were.
        border: colour in [0, 255] of timm's crop mode ``border``: the whole image is made to fit into ``resize`` and
            the rest is filled with it. ``None``: ``resize`` is covered, and what stands over is cropped.
        jpeg: how JPEG images are to be decoded before: ``exact``, or ``reduced`` as far as ``least`` allows.
    """

    resize: int | tuple[int, int]
    crop: int | tuple[int, int]
    interpolation: str
    squash: bool = False
    border: tuple[int, int, int] | None = None
    jpeg: Literal["exact", "reduced"] = "exact"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what comes out, in pixels."""
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    def least(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels that decoding at reduced scale must leave of an image of ``height x width``.

        Twice what it is resized to: resizing by half or more takes away the upper half of the frequencies that the
        reduced image holds, and it is there that scaled decoding, which works block by block, differs from decoding
        every pixel. With once the pixels there would be nothing to average, and features differ about twice as much
        (docs/performance.md).
        """
        resized = self._resized(height, width)
        return (2 * resized[0], 2 * resized[1]) if _possible(*resized) else (height, width)

    def __call__(self, image: Image.Image, box: tuple[float, float, float, float] | None = None) -> Pixels:
        """RGB image -> ``(3, height, width)`` uint8.

        Args:
            image: of mode RGB.
            box: left, top, right and bottom of the part that is taken, in pixels; ``None`` takes all.

        Raises:
            DataError: it is too elongated to be resized.
        """
        left, top, right, bottom = box or (0, 0, image.width, image.height)
        height, width = self._resized(bottom - top, right - left)
        if not _possible(height, width):
            side = " x ".join(map(str, self.resize)) if isinstance(self.resize, tuple) else self.resize
            raise DataError(
                f"is {image.width} x {image.height} pixels, too elongated to be brought to {side} pixels: crop it in "
                f"the source, or leave it out"
            )
        image = image.resize((width, height), _MODES.get(self.interpolation, Image.Resampling.BICUBIC), box)
        image = _centred(image, *self.shape, self.border or (0, 0, 0))
        return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))

    def _resized(self, height: float, width: float) -> tuple[int, int]:
        wanted = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
        if self.squash:
            return wanted
        ratios = height / wanted[0], width / wanted[1]
        if self.border is not None or wanted[0] != wanted[1]:
            ratio = min(ratios) if self.border is None else max(ratios)
            return round(height / ratio), round(width / ratio)
        short = wanted[0]  # torchvision rounds the longer side down, timm's own resizing to the nearest
        long = int(short * max(height, width) / min(height, width))
        return (long, short) if width <= height else (short, long)


def _possible(height: int, width: int) -> bool:
    return height * width <= _MAX_RESIZED and min(height, width) >= 1


def _centred(image: Image.Image, height: int, width: int, colour: tuple[int, int, int]) -> Image.Image:
    """The middle ``height x width`` of an image; sides that are too short are filled up, the odd pixel at the end."""
    left, top = _start(image.width, width), _start(image.height, height)
    if left >= 0 and top >= 0:
        return image.crop((left, top, left + width, top + height))
    canvas = Image.new("RGB", (width, height), colour)
    canvas.paste(image, (-left, -top))
    return canvas


def _start(have: int, want: int) -> int:
    return round((have - want) / 2) if have >= want else -((want - have) // 2)
