"""The picture at the top of the README, from a finished run: ``python docs/picture.py``."""

from __future__ import annotations

from pathlib import Path

import torch

from clpdd.distilled.dataset import DistilledSet, grid, png_bytes
from clpdd.storage.files import write_bytes

distilled = DistilledSet.load("data/distilled/clpdd_resnet14/clp")
assert distilled.start is not None
rows = torch.cat([distilled.images, distilled.start])
write_bytes(Path(__file__).parent / "digits.png", png_bytes(grid(rows, columns=len(distilled), gap=6)))
