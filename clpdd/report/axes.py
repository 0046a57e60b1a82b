"""Feature space in two dimensions: real features, and those of synthetic and central images, on principal axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from ..features.kernels import Kernels
from ..features.store import FeatureStore

__all__ = ["Mark", "Scatter", "principal_axes", "sample", "scatter"]

COLOURED = 12
"""With more classes than these, points are not coloured by class."""

_MOST_MARKS = 400
_SAMPLED = 1500


@dataclass(frozen=True)
class Mark:
    """An image of a set: ``x`` and ``y`` in percent of the drawing area from its top left, and its class."""

    kind: str
    label: int
    x: float
    y: float


@dataclass(frozen=True)
class Scatter:
    """A picture of feature space.

    Attributes:
        real: SVG path data of the real features' points in a 100 x 100 box, by class; by ``-1`` all together where
            there are more than ``COLOURED`` classes.
        marks: the images of the sets.
        shares: percent of the real features' variance along each axis.
        shown: how many real features there are points of.
        total: how many there are.
        left_out: images of the sets that are not shown.
    """

    real: dict[int, str]
    marks: list[Mark]
    shares: tuple[float, float]
    shown: int
    total: int
    left_out: int


def principal_axes(kernels: Kernels) -> tuple[Tensor, tuple[float, float]]:
    """The two directions ``(d, 2)`` float64 along which real training features vary most, and their shares in percent.

    They are eigenvectors of the covariance, exact over all training images. Of each, the entry of the largest size is
    positive, so that a picture is not mirrored from run to run.
    """
    covariance = (kernels.moments.centred_gram / kernels.n).numpy()
    values, vectors = eigsh(covariance, k=2, v0=np.ones(len(covariance)))
    values, vectors = values[::-1], vectors[:, ::-1].copy()
    signs = np.sign(vectors[np.abs(vectors).argmax(0), range(2)])
    total = float(kernels.eigenvalues.sum()) or 1.0
    shares = [100 * max(0.0, float(value)) / total for value in values]
    return torch.from_numpy(vectors * signs), (shares[0], shares[1])


def sample(store: FeatureStore, count: int = _SAMPLED) -> tuple[Tensor, Tensor]:
    """About ``count`` features ``(k, d)`` float32 and labels ``(k,)`` from all over a store."""
    size = len(store)
    run = 1 if size <= 50_000 else 10  # of a large store neighbours are taken together, for the sake of reading
    starts = np.linspace(0, size - run, min(size, count // run), dtype=np.int64)
    starts = np.unique(starts)
    if run == 1:
        rows = torch.from_numpy(starts)
        return store.features()[rows], store.labels[rows]
    parts = [torch.from_numpy(store.stored(int(start), int(start) + run)).float() for start in starts]
    rows = torch.cat([torch.arange(start, start + run) for start in starts])
    return torch.cat(parts), store.labels[rows]


def scatter(kernels: Kernels, train: FeatureStore, sets: Mapping[str, tuple[Tensor, Tensor]]) -> Scatter:
    """Place real features and the images of sets.

    Args:
        train: where the real features come from.
        sets: features ``(n, d)`` and labels ``(n,)`` of every kind of image, in the order in which they are drawn.
    """
    axes, shares = principal_axes(kernels)
    features, labels = sample(train)
    mean = kernels.mean.double()
    placed = {"": (features.double() - mean) @ axes}
    placed |= {kind: (Z.double().cpu() - mean) @ axes for kind, (Z, _) in sets.items()}
    everything = torch.cat(list(placed.values()))
    low, high = everything.amin(0), everything.amax(0)
    span = (high - low).clamp(min=1e-9)

    def place(points: Tensor) -> list[list[float]]:
        x, y = (3 + 94 * (points - low) / span).unbind(1)
        return [[round(a, 1), round(100 - b, 1)] for a, b in zip(x.tolist(), y.tolist(), strict=True)]

    coloured = len(kernels.class_names) <= COLOURED
    paths: dict[int, list[str]] = {}
    for (x, y), label in zip(place(placed[""]), labels.tolist(), strict=True):
        paths.setdefault(label if coloured else -1, []).append(f"M{x:g} {y:g}h0")
    marks, left_out = [], 0
    for kind, (_, own) in sets.items():
        kept = place(placed[kind][:_MOST_MARKS])
        left_out += len(own) - len(kept)
        marks += [Mark(kind, label, x, y) for (x, y), label in zip(kept, own.tolist(), strict=False)]
    real = {label: "".join(found) for label, found in sorted(paths.items())}
    return Scatter(real, marks, shares, len(features), len(train), left_out)
