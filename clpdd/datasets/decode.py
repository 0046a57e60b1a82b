"""Encoded image files -> 8-bit RGB, whatever they hold, or one clear refusal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError, first_line
from . import png

__all__ = ["FORMATS", "SUFFIXES", "Box", "Least", "Undecodable", "decode", "decode_image", "decode_reduced", "identify"]

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image in pixels, as ``Image.resize`` takes it."""

Least = Callable[[int, int], tuple[int, int]]
"""Height and width of an upright image -> the height and width, each >= 1, below which it must not be reduced."""

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

_TURNED = (5, 6, 7, 8)  # width and height change places
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG that others follow, as some cameras write

_Found = TypeVar("_Found")

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


def decode_reduced(data: bytes, max_pixels: int, where: str, least: Least) -> tuple[Image.Image, Box]:
    """``decode_image`` for images that are made smaller afterwards: large JPEGs come at 1/2, 1/4 or 1/8 of their sides.

    libjpeg computes the fewer pixels from the coefficients of each block, which is quicker than computing all. The
    strongest reduction is taken that leaves what ``least`` asks for. Other formats, and what is too small to be
    reduced, are decoded as by ``decode_image``.

    Args:
        data, where: as above.
        max_pixels: as above; the whole image counts, not what is left of it.
        least: how far it may be reduced.

    Returns:
        An image of mode RGB, and the part of it that shows the whole image: all of it, but for a fraction of a pixel
        where the sides are no multiples of the reduction.

    Raises:
        DataError: as above.
    """
    try:
        return _read(lambda own: _decode(own, max_pixels, least), data)
    except Undecodable as problem:
        raise DataError(f"{where}: the image {problem}") from problem


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """``decode_image`` for callers that name the image themselves; raises ``Undecodable`` alone."""
    return _read(lambda own: _decode(own, max_pixels)[0], data)


def identify(data: bytes) -> Image.Image:
    """Open by content and read the header alone, which tells format, mode and size. Raises ``Undecodable``."""
    return _read(_identify, data)


def _read(how: Callable[[bytes], _Found], data: bytes) -> _Found:
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


def _decode(data: bytes, max_pixels: int, least: Least | None = None) -> tuple[Image.Image, Box]:
    opened = _identify(data)
    width, height = opened.size
    if width < 1 or height < 1:
        raise Undecodable(f"is {width} x {height} pixels: it is empty")
    if width * height > max_pixels:
        raise Undecodable(
            f"is {width} x {height} pixels, more than dataset.max_pixels allows ({max_pixels}): shrink it, or raise "
            f"the setting if it is no decompression bomb"
        )
    sides: tuple[float, float] | None = None
    try:
        if least is not None and opened.format in _JPEG:
            sides = _reduce(opened, least)
        opened.load()
        image = _rgb(opened)
        orientation = _orientation(opened)
        upright = _UPRIGHT.get(orientation)
        image = image if upright is None else image.transpose(upright)
    except Undecodable:
        raise
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes lead them to, even KeyError
        raise Undecodable(f"cannot be decoded as {opened.format}: {_said(error)}") from error
    image.info = {}
    return image, (0, 0, *image.size) if sides is None else _upright_box(image, sides, orientation)


def _reduce(opened: Image.Image, least: Least) -> tuple[float, float] | None:
    """Have a JPEG, not loaded yet, decoded at reduced scale; width and height of the whole in the pixels to come."""
    turned = _orientation(opened) in _TURNED
    width, height = opened.size
    rows, columns = least(width, height) if turned else least(height, width)
    drafted = opened.draft(None, (rows, columns) if turned else (columns, rows))
    return None if drafted is None else drafted[1][2:]


def _upright_box(image: Image.Image, sides: tuple[float, float], orientation: Any) -> Box:
    """Where the whole lies in the upright image: what fills its last blocks up was at the right and at the bottom."""
    width, height = reversed(sides) if orientation in _TURNED else sides
    left = image.width - width if orientation in (2, 3, 6, 7) else 0
    top = image.height - height if orientation in (3, 4, 7, 8) else 0
    return left, top, left + width, top + height


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
