"""Features that other versions of timm, torch or Pillow made: compared with what encodes now before they are used."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..datasets.index import Index
from ..encoders.calling import encode
from ..encoders.encoder import Encoder
from ..errors import ArtifactError
from .decoding import decode_rows
from .same_images import refuse_other_images
from .store import FeatureStore, deciding_versions

__all__ = ["confirm"]

log = logging.getLogger(__name__)

_IMAGES = 8  # images of a store that are encoded again
_ROUNDING = {"float32": 5e-3, "bfloat16": 0.15}
"""Share of the features' spread by which passes of one precision may differ, on whatever machine: three times what
the shipped encoder's differ by in bfloat16."""


def confirm(store: FeatureStore, encoder: Encoder, index: Path) -> None:
    """Refuse features that the encoder would not give today.

    Nothing is done where the store was made by the versions that run. Else a few of its images are decoded as they were
    for the store and encoded again: features equal within rounding are adopted, which is said in a line.

    Args:
        store: features of one split.
        encoder: the encoder that made them, as its digest says.
        index: Parquet index of the same split.

    Raises ``ArtifactError`` when they differ, or when the index is missing or another.
    """
    now = deciding_versions()
    if store.versions == now or not len(store):
        return
    others = {name: store.versions.get(name, "unknown") for name in now if store.versions.get(name) != now[name]}
    changed = ", ".join(f"{name} {version} (now {now[name]})" for name, version in others.items())
    remedy = f"run the cache stage of {encoder.name} again, or install the versions of then"
    if not index.exists():
        raise ArtifactError(f"{store.path} was made by {changed}, and {index} is not there to compare: {remedy}")
    opened = Index.open(index)
    refuse_other_images(store, opened)
    rows = sorted({round(k * (len(store) - 1) / (_IMAGES - 1)) for k in range(_IMAGES)})
    preprocess = replace(encoder.preprocess, jpeg=store.jpeg)
    pixels = np.concatenate([decode_rows(opened, preprocess, row, row + 1) for row in rows])
    stored = torch.from_numpy(np.concatenate([store.stored(row, row + 1) for row in rows])).float()
    tried = [store.precision] if store.precision in _ROUNDING else list(_ROUNDING)  # older stores do not say
    for precision in tried:
        found = encode(encoder, torch.from_numpy(pixels), len(rows), precision).cpu()
        apart, allowed = _apart(stored, found), _ROUNDING[precision] + _apart(found, found.half().float())
        if apart <= allowed:
            log.info(
                "%s was made by %s: %d of its images encoded again are the same within rounding (%.2g of their spread)",
                store.path,
                changed,
                len(rows),
                apart,
            )
            return
    raise ArtifactError(
        f"{store.path} was made by {changed}, and {len(rows)} of its images encoded again have other features (apart "
        f"by {apart:.2g} of their spread, rounding explains {allowed:.2g}): {remedy}"
    )


def _apart(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference ``(n, d)``, as a share of what images differ by."""
    spread = (one - one.mean(0)).square().mean() if len(one) > 1 else one.square().mean()
    return float(((one - other).square().mean() / spread.clamp_min(1e-20)).sqrt())
