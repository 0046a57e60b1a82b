"""The digits that ship with scikit-learn: 1,797 grey images of 8 x 8 pixels, no two alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import BadImages, Images, Source, check_class_names

__all__ = ["list_digits"]


def list_digits(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """All digits as one split, their values 0..16 scaled to 0..255 and rounded (``base`` and ``bad`` are not used)."""
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    found = load_digits()
    names = [str(name) for name in found.target_names]
    if settings.class_names is not None:
        if len(settings.class_names) != len(names):
            raise DataError(
                f"dataset.class_names has {len(settings.class_names)} names, but digits has {len(names)} classes"
            )
        names = check_class_names(settings.class_names, "dataset.class_names")
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    return Source("digits", names, {"train": Images(pixels, found.target, "digits", len(names))})
