"""Images as data URIs within a byte budget, so that the page stays small whatever it shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from ..errors import ArtifactError

__all__ = ["SHEET", "SHEET_COLUMNS", "Picture", "Timelapse", "fit", "sheets", "timelapse"]

SHEET_COLUMNS = 20
SHEET = 25 * SHEET_COLUMNS
"""Images of a sheet, in rows of ``SHEET_COLUMNS``."""

_CRISP = 64
"""Images up to this side are shown with their pixels sharp and stored losslessly."""


_MOST_FRAMES = 40
_TALLEST = 16_000  # pixels: WebP ends at 16,383


@dataclass(frozen=True)
class Picture:
    """An image as a ``data:`` URI with its size in pixels; ``crisp`` asks for sharp pixels when scaled up."""

    uri: str
    width: int
    height: int
    crisp: bool


@dataclass(frozen=True)
class Timelapse:
    """The optimisation as a strip of frames below each other, which the page moves through a window.

    A page can stop that without a script, which no animated image allows.

    Attributes:
        strip: all frames that are shown, the last one lowest.
        width, height: of one frame, in pixels.
        shown: frames in the strip.
        frames: frames that there were.
    """

    strip: Picture
    width: int
    height: int
    shown: int
    frames: int


def fit(images: Sequence[np.ndarray], budget: int) -> list[Picture]:
    """Encode ``images``, each (3, h, w) uint8, in about ``budget`` bytes of base64 text together.

    Small images stay lossless PNG while that fits; otherwise WebP of shrinking side, down to 24 pixels, so that at the
    very end the budget may be exceeded.
    """
    pictures = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images]
    side = max((max(p.size) for p in pictures), default=0)
    attempts = [(side, True)] if side <= _CRISP else []
    attempts += [(limit, False) for limit in (160, 128, 96, 64, 48, 32, 24) if limit <= max(side, 24)] or [(24, False)]
    made: list[Picture] = []
    for limit, lossless in attempts:
        made = [_picture(p, limit, lossless) for p in pictures]
        if sum(len(p.uri) for p in made) <= budget:
            break
    return made


def sheets(images: np.ndarray, budget: int) -> list[Picture]:
    """Join ``images (n, 3, s, s)`` uint8 into sheets of ``SHEET``, in about ``budget`` bytes of base64 text together.

    The last sheet is filled up with white. Images are at most 24 pixels wide; to meet the budget WebP gets coarser and
    they get smaller, down to 12 pixels, so that at the very end it may be exceeded.
    """
    count, side = len(images), images.shape[-1]
    rows, made = SHEET // SHEET_COLUMNS, list[Picture]()
    for limit, quality in ((24, 88), (24, 70), (24, 50), (16, 50), (12, 40)):
        made, small = [], min(side, limit)
        for first in range(0, count, SHEET):
            cells = np.full((SHEET, 3, side, side), 255, dtype=np.uint8)
            cells[: min(SHEET, count - first)] = images[first : first + SHEET]
            own = [Image.fromarray(np.ascontiguousarray(cell.transpose(1, 2, 0))) for cell in cells]
            sheet = Image.new("RGB", (SHEET_COLUMNS * small, rows * small))
            for k, cell in enumerate(own):
                fitted = cell if side == small else cell.resize((small, small), Image.Resampling.LANCZOS)
                sheet.paste(fitted, (k % SHEET_COLUMNS * small, k // SHEET_COLUMNS * small))
            buffer = io.BytesIO()
            sheet.save(buffer, "WEBP", quality=quality, method=4)
            made.append(Picture(_uri(buffer.getvalue(), "webp"), *sheet.size, side <= _CRISP))
        if sum(len(p.uri) for p in made) <= budget:
            break
    return made


def _picture(image: Image.Image, limit: int, lossless: bool) -> Picture:
    crisp = max(image.size) <= _CRISP
    if max(image.size) > limit:
        image = image.copy()
        image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "WEBP", quality=88, method=4)
    return Picture(_uri(buffer.getvalue(), "png" if lossless else "webp"), *image.size, crisp)


def timelapse(path: Path, budget: int) -> Timelapse | None:
    """The animation at ``path`` in about ``budget`` bytes of base64 text, its frames shrunk or thinned if need be.

    Returns ``None`` where there is none. Raises ``ArtifactError`` when the file is not an animation that can be read.
    """
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as animation:
            frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(animation)]
    except (OSError, ValueError, SyntaxError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): delete its folder and distil again") from error
    size, count = frames[-1].size, min(len(frames), _MOST_FRAMES)
    while True:
        count = max(1, min(count, _TALLEST // size[1]))
        kept = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count - 1)] + frames[-1:]
        strip = Image.new("RGB", (size[0], size[1] * count))
        for i, frame in enumerate(kept):
            own = frame if frame.size == size else frame.resize(size, Image.Resampling.BOX)
            strip.paste(own, (0, i * size[1]))
        buffer = io.BytesIO()
        strip.save(buffer, "WEBP", quality=88, method=4)
        uri = _uri(buffer.getvalue(), "webp")
        if len(uri) <= budget or (max(size) <= 64 and count <= 8):
            break
        scale = min(0.9, 0.95 * (budget / len(uri)) ** 0.5)
        if max(size) > 64:
            size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        else:
            count = max(1, round(count * scale))
    return Timelapse(Picture(uri, *strip.size, size == frames[-1].size), *size, count, len(frames))


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
