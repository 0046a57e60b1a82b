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

__all__ = ["Picture", "Timelapse", "fit", "timelapse"]

_CRISP = 64
"""Images up to this side are shown with their pixels sharp and stored losslessly."""


@dataclass(frozen=True)
class Picture:
    """An image as a ``data:`` URI with its size in pixels; ``crisp`` asks for sharp pixels when scaled up."""

    uri: str
    width: int
    height: int
    crisp: bool


@dataclass(frozen=True)
class Timelapse:
    """The optimisation as an animation, with its last frame for readers who ask for less motion."""

    animation: Picture
    still: Picture
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
    """The animation at ``path`` in about ``budget`` bytes of base64 text, shrunk if need be.

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
    size = frames[-1].size
    uri = _uri(data, "gif")
    kept = frames[:: -(-len(frames) // 40)]
    while len(uri) > budget and max(size) > 64:
        scale = min(0.8, 0.95 * (budget / len(uri)) ** 0.5)
        size = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        smaller = [_reduced(frame, size) for frame in (*kept[:-1], frames[-1])]
        buffer = io.BytesIO()
        durations = [200] * (len(smaller) - 1) + [2000]
        smaller[0].save(buffer, "GIF", save_all=True, append_images=smaller[1:], duration=durations, loop=0)
        uri = _uri(buffer.getvalue(), "gif")
    crisp = size == frames[-1].size
    last = frames[-1].resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    last.save(buffer, "WEBP", quality=88, method=4)
    return Timelapse(Picture(uri, *size, crisp), Picture(_uri(buffer.getvalue(), "webp"), *size, crisp), len(frames))


def _reduced(frame: Image.Image, size: tuple[int, int]) -> Image.Image:
    # the octree is some twenty times quicker than Pillow's own choice, which matters for sheets of hundreds of images
    return frame.resize(size, Image.Resampling.BOX).quantize(256, method=Image.Quantize.FASTOCTREE)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
