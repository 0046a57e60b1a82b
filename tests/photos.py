"""A small folder of photos to run on: two classes of plain colours that any encoder tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["QUICK", "draw_photos"]

QUICK = """\
distill: {steps: 4, validate_every: 2, preview_every: 2}
methods: [clp, full]
evaluate: {protocols: [closed_form], seeds: 2, views: 2}
runtime: {workers: 0}
"""
"""Settings with which every stage takes a second or two."""


def draw_photos(root: Path, each: int = 10, classes: tuple[str, ...] = ("blue sky", "red")) -> Path:
    """Draw ``each`` PNG files a class below ``root``, all of them different."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for image in range(each):
            pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * (number % 2)] += 180
            Image.fromarray(pixels).save(root / name / f"{image}.png")
    return root
