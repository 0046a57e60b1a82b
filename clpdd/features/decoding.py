"""Rows of an index -> batches of pixels, and how many processes are worth starting for it.

Torch is not imported: processes that decode need none of it.
"""

from __future__ import annotations

import math

import numpy as np

from ..datasets.index import Index
from ..encoders.preprocessing import Pixels, Preprocess
from ..errors import DataError

__all__ = ["Batch", "choose_workers", "decode_rows"]

Batch = tuple[int, int]
"""Rows ``[start, stop)`` of an index."""

_START_SECONDS = 1.0  # about what it takes to start a worker process
_MARGIN = 1.1  # of decoding over encoding, so that the slower batches do not hold the encoder up


def choose_workers(decoding: float, encoding: float, batches: int, cores: int) -> int:
    """Processes that decode as fast as the encoder encodes.

    Args:
        decoding, encoding: seconds that one batch takes.
        batches: batches to come.
        cores: processors that may be used, >= 1.

    Returns:
        In ``[1, cores]``; 0 where all decoding is done before another process has started.
    """
    if decoding * batches < _START_SECONDS:
        return 0
    return max(1, min(cores, math.ceil(_MARGIN * decoding / max(encoding, 1e-9))))


def decode_rows(index: Index, preprocess: Preprocess, start: int, stop: int) -> Pixels:
    """Pixels ``(stop - start, 3, height, width)`` uint8 of rows ``[start, stop)``, decoded as ``preprocess.jpeg`` says.

    Raises ``DataError`` naming the sample when an image cannot be decoded.
    """
    pixels = np.empty((stop - start, 3, *preprocess.shape), dtype=np.uint8)
    for row in range(start, stop):
        if preprocess.jpeg == "reduced":
            image, box = index.reduced_image(row, preprocess.least)
        else:
            image, box = index.image(row), None
        try:
            pixels[row - start] = preprocess(image, box)
        except DataError as error:
            raise DataError(f"image {index.ids[row]!r} of the {index.split} split {error}") from None
    return pixels
