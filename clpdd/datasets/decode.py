"""Encoded image files -> 8-bit RGB, whatever they hold, or one clear refusal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DataError, first_line
from . import png

__all__ = ["FORMATS", "SUFFIXES", "Undecodable", "decode", "decode_image", "identify"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "TGA")
"""Formats that are read, by content, never by file name. Others of Pillow's stay shut: EPS would start Ghostscript."""

_TGA_FOOTER = b"TRUEVISION-XFILE.\0"  # TGA has no mark at its beginning

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Image.init()

SUFFIXES = tuple(sorted(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS))
"""What names of such files end in, in lower case: for finding images among other files."""


class Undecodable(Exception):
    """Why an image cannot be used, as words that follow "the image ..."; holds no path and no address."""


def decode_image(data: bytes, max_pixels: int, where: str) -> Image.Image:
    """Decode an image file held in memory.

    EXIF orientation is applied; transparency is laid over white; CMYK, palette and grey images become RGB; 16-bit
    values are divided by 257 (65535 -> 255), 32-bit integers are taken as 16-bit, floats as [0, 1] or, where any
    exceeds 1, as [0, 255]. Of an animation the first frame is taken.

    Args:
        data: the encoded file.
        max_pixels: width * height above which the image is refused on its header alone, before any pixel is decoded.
        where: names the image in errors.

    Returns:
        An image of mode RGB, without metadata.

    Raises:
        DataError: naming ``where`` and the reason. Nothing else is raised, whatever ``data`` holds.
    """
    try:
        return decode(data, max_pixels)
    except Undecodable as problem:
        raise DataError(f"{where}: the image {problem}") from problem


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """``decode_image`` for callers that name the image themselves; raises ``Undecodable`` alone."""
    return _read(lambda own: _decode(own, max_pixels), data)


def identify(data: bytes) -> Image.Image:
    """Open by content and read the header alone, which tells format, mode and size. Raises ``Undecodable``."""
    return _read(_identify, data)


def _read(how: Callable[[bytes], Image.Image], data: bytes) -> Image.Image:
    """Of a PNG that is refused, what it is without the texts and profiles that may be to blame."""
    try:
        return how(data)
    except Undecodable:
        if not data.startswith(png.SIGNATURE):
            raise
        bare = png.without_texts(data)
        if len(bare) == len(data):
            raise
        return how(bare)


def _decode(data: bytes, max_pixels: int) -> Image.Image:
    opened = _identify(data)
    width, height = opened.size
    if width < 1 or height < 1:
        raise Undecodable(f"is {width} x {height} pixels: it is empty")
    if width * height > max_pixels:
        raise Undecodable(
            f"is {width} x {height} pixels, more than dataset.max_pixels allows ({max_pixels}): shrink it, or raise "
            f"the setting if it is no decompression bomb"
        )
    try:
        opened.load()
        image = _rgb(opened)
        upright = _UPRIGHT.get(_orientation(opened))
        image = image if upright is None else image.transpose(upright)
    except Undecodable:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to, even KeyError
        raise Undecodable(f"cannot be decoded as {opened.format}: {_said(error)}") from error
    image.info = {}
    return image


def _identify(data: bytes) -> Image.Image:
    """Open by content, reading the header only.

    Asks Pillow's plugins directly, since ``Image.open`` applies its own, process-wide limit of pixels first.
    """
    if not data:
        raise Undecodable("has no bytes: the file is empty")
    if data.startswith(b"version https://git-lfs"):
        raise Undecodable("is a Git LFS pointer, not the file itself: run `git lfs pull`")
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or (name == "TGA" and not data.endswith(_TGA_FOOTER)):
            continue
        try:
            if accepts is None or accepts(data[:16]) is True:
                return factory(io.BytesIO(data), "")
        except Exception as error:  # as above
            raise Undecodable(f"has a damaged {name} header: {_said(error)}") from error
    raise Undecodable(
        f"is in none of the formats that are read ({', '.join(FORMATS)}), going by its content: convert it, to PNG say"
    )


def _said(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it takes more memory than there is"
    return re.sub(r"\s*<[^>]* at 0x[0-9a-f]+>", "", first_line(error)) or type(error).__name__


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8; after ``load``, which already turns TIFF images upright."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF does not make the pixels unusable
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _sixteen_bits(np.asarray(image).astype(np.int64))
    if image.mode == "I":
        return _sixteen_bits(np.asarray(image).astype(np.int64))
    if image.mode == "F":
        return _floats(np.asarray(image))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bits(values: np.ndarray) -> Image.Image:
    if values.min() < 0 or values.max() > 65535:
        raise Undecodable(
            f"holds integers from {values.min()} to {values.max()}, but 0 to 65535 is allowed: store it with 8 or 16 "
            f"bits"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _floats(values: np.ndarray) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise Undecodable(
            f"holds floats from {low:g} to {high:g}, but [0, 1] or [0, 255] is allowed: store it with 8 or 16 bits"
        )
    scaled = values * 255 if high <= 1 else values
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")
