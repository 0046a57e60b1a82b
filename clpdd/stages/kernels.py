"""The kernel stage: everything about the real features that is computed once.

One streamed pass over the training features gives their moments (``clpdd.functional.moments``); means, spectrum and the
closed-form full-data probe follow from these alone. A second, light pass finds the real images nearest to each class
mean. The validation split chooses the ridge; the test split is never read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ArtifactError, DataError, remedied
from ..features.kernels import Kernels
from ..features.store import FeatureStore
from ..functional.moments import Moments, stream_moments
from ..functional.parts import even_factors, recorded_parts
from ..functional.ridge import solve_normal
from ..storage.files import explain_os_errors
from ..storage.provenance import code_digest
from ..storage.work import fingerprint

if TYPE_CHECKING:
    from ..config.kernels import KernelSettings
    from .project import Project, Run

__all__ = ["compute_kernels", "run_kernels"]

log = logging.getLogger(__name__)


def compute_kernels(
    train: Path | str,
    validation: Path | str,
    settings: KernelSettings,
    target: Path | str,
    run: Run,
) -> Kernels:
    """Run the kernel stage: ``target`` becomes a folder with ``moments.safetensors`` and ``kernels.json``.

    Args:
        train, validation: feature stores of one encoder. The test split has no place here and is refused.
        settings: grid of relative ridges, rows per block, number of nearest images.
        target: the folder to make; replaced when whole.
        run: where partial work lives, how long to wait for another run of the same.

    Raises:
        DataError: fewer than two classes, a class without training images, labels or class names of the two splits
            that do not fit, or all features the same.
        ArtifactError: a store is missing or damaged, or the two were made by different encoders.
        NumericalError: features or the probe are not finite, or the smallest ridge leaves the system singular.
    """
    target = Path(target)
    real, held_out = FeatureStore.open(train), FeatureStore.open(validation)
    _check(real, held_out)
    sources = {
        name: {"content": store.digest, "class_names": store.class_names, "encoder": store.encoder}
        for name, store in (("train", real), ("validation", held_out))
    }
    record = fingerprint(settings=settings.model_dump(mode="json"), code=code_digest("clpdd.stages.kernels"), **sources)
    with run.folder("kernels", str(real.encoder["name"]), record) as work:

        def make() -> None:
            with explain_os_errors("write", work.out):
                _kernels(real, held_out, settings).save(work.out / "kernels")

        work.produce(make, {"kernels": target})
    return Kernels.load(target)


def _check(real: FeatureStore, held_out: FeatureStore) -> None:
    for store in (real, held_out):
        if store.split == "test":
            raise DataError(f"{store.path} holds the test split, which evaluation alone may read: give another store")
    if real.encoder != held_out.encoder:
        raise ArtifactError(
            f"{real.path} and {held_out.path} were made by different encoders or weights: run the cache stage again"
        )
    if real.class_names != held_out.class_names:
        raise DataError(
            f"the classes of {real.path} ({_some(real.class_names)}) and {held_out.path} "
            f"({_some(held_out.class_names)}) differ: build the index and the features of both splits again"
        )
    classes = len(real.class_names)
    if classes < 2:
        raise DataError(
            f"the training split has {classes} class ({_some(real.class_names)}); a probe needs two or more"
        )
    for store in (real, held_out):
        labels = store.labels
        wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"row {row} of {store.path} has label {int(labels[row])}, but there are {classes} classes: labels "
                f"must lie in [0, {classes}); build the index again"
            )
    counts = torch.bincount(real.labels, minlength=classes)
    empty = [name for name, count in zip(real.class_names, counts.tolist(), strict=True) if count == 0]
    if empty:
        raise DataError(
            f"{len(empty)} of {classes} classes have no training images ({_some(empty)}): add images, or list only "
            f"the classes that have some in dataset.class_names"
        )


def _some(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... {len(names)} in all" if len(names) > limit else "")


def _kernels(real: FeatureStore, held_out: FeatureStore, settings: KernelSettings) -> Kernels:
    with remedied(singular="", infinite="run the cache stage again with cache.dtype: float32"):
        moments = stream_moments(real.scan(settings.block_rows, torch.float64), len(real.class_names))
    eigenvalues, effective_rank = _spectrum(moments)
    power = float(moments.centred_gram.trace()) / (moments.n * real.dim)
    if not power > 1e-14 * float(moments.gram.trace()) / (moments.n * real.dim):
        raise DataError(f"all {moments.n} training features in {real.path} are the same: is the encoder trained?")
    factors = even_factors(recorded_parts(real.encoder), moments.variances)
    grid = sorted(set(settings.ridge_grid))
    probes = [_probe(moments, ridge, factors) for ridge in grid]
    scores = _validation_top1(held_out, probes, settings.block_rows)
    # Ascending order and >= together: of equal scores the larger ridge wins.
    best = max(range(len(grid)), key=lambda k: (scores[k], grid[k]))
    weights, bias = probes[best]
    return Kernels(
        counts=moments.counts,
        class_means=moments.class_means.float(),
        mean=moments.mean.float(),
        gram=moments.gram,
        cross=moments.cross,
        eigenvalues=eigenvalues,
        weights=weights.float(),
        bias=bias.float(),
        nearest=_nearest(real, moments.class_means, settings.nearest, settings.block_rows, factors),
        n=moments.n,
        scale=power**0.5,
        effective_rank=effective_rank,
        ridge=grid[best],
        ridge_scores=[{"ridge": ridge, "validation_top1": score} for ridge, score in zip(grid, scores, strict=True)],
        class_names=real.class_names,
        encoder=real.encoder,
        digests={"train": real.digest, "validation": held_out.digest},
    )


def _spectrum(moments: Moments) -> tuple[Tensor, float]:
    """Eigenvalues ``(d,)`` of the covariance, descending, and ``exp(-sum p log p)`` of their shares ``p``."""
    eigenvalues = torch.linalg.eigvalsh(moments.centred_gram / moments.n).flip(0).clamp_min(0)
    shares = eigenvalues / eigenvalues.sum()
    return eigenvalues, float(torch.exp(-torch.special.xlogy(shares, shares).sum()))


def _probe(moments: Moments, ridge: float, factors: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights ``(d, C)`` and bias ``(C,)``, float64, of the ridge probe on all rows, from the moments alone.

    .. math:: W = (G_c + \lambda I)^{-1} M_c, \quad \lambda = \mathrm{ridge} \cdot \mathrm{tr}(G_c) / n

    on centred features and one-hot targets less ``1/C``. Equivalent to ``ridge.solve`` on those; ``lambda`` equals
    ``ridge`` times the energy of one mean row, so that on ``n`` rows a ridge of 1 weighs as much as one row does. To a
    mean eigenvalue of ``G_c`` it stands as ``ridge * d / n``: with many rows per feature even ridges of 10 are mild.
    It is fitted on features times ``factors (d,)`` and returned for features without them.
    """
    scaled = moments.scaled(factors)
    with remedied(singular=f"raise or remove {ridge:g} in kernels.ridge_grid", infinite="check the features"):
        even = solve_normal(scaled.centred_gram, scaled.centred_cross, moments.n, ridge)
    weights = factors[:, None] * even
    return weights, -moments.mean @ weights


def _validation_top1(store: FeatureStore, probes: Sequence[tuple[Tensor, Tensor]], rows: int) -> list[float]:
    """Top-1 in percent of every probe on the rows of ``store``, in float32, as the probes are kept and used."""
    hits = [0] * len(probes)
    single = [(weights.float(), bias.float()) for weights, bias in probes]
    logits = torch.empty(min(rows, len(store)), len(probes[0][1]))
    for Z, labels in store.scan(rows):
        for k, (weights, bias) in enumerate(single):
            torch.addmm(bias, Z, weights, out=logits[: len(Z)])
            hits[k] += int((logits[: len(Z)].argmax(1) == labels).sum())
    return [100 * hit / len(store) for hit in hits]


def _nearest(store: FeatureStore, class_means: Tensor, keep: int, rows: int, factors: Tensor) -> Tensor:
    """Rows ``(C, keep)`` int64 nearest to the mean ``(C, d)`` of their class: by distance, then by row; -1 pads.

    Distances are those of features times ``factors (d,)``.
    """
    parts, offsets = [], class_means.new_empty(min(rows, len(store)), store.dim)
    for Z, labels in store.scan(rows, torch.float64):
        offset = torch.index_select(class_means, 0, labels, out=offsets[: len(Z)]).sub_(Z).mul_(factors)
        parts.append(offset.square_().sum(1).sqrt_())
    # float32 makes ties of what differs by rounding only: the two rows of a class of two, equally far from its mean.
    distances = torch.cat(parts).float()
    order = distances.sort(stable=True).indices
    order = order[store.labels[order].sort(stable=True).indices]  # by class, then distance, then row
    nearest = torch.full((len(class_means), keep), -1, dtype=torch.int64)
    counts = torch.bincount(store.labels, minlength=len(class_means)).tolist()
    for c, members in enumerate(torch.split(order, counts)):
        nearest[c, : min(keep, len(members))] = members[:keep]
    return nearest


def run_kernels(project: Project, encoder: str) -> None:
    """Moments, spectrum, full-data probe and central images of one encoder's features."""
    layout = project.layout
    project.take("kernels", encoder, layout.kernels(encoder), "kernels")
    found = compute_kernels(
        layout.features(encoder, "train"),
        layout.features(encoder, "validation"),
        project.settings.kernels,
        layout.kernels(encoder),
        project.run,
    )
    score = next(entry["validation_top1"] for entry in found.ridge_scores if entry["ridge"] == found.ridge)
    log.info("full-data probe: validation top-1 %.2f %% at ridge %g", score, found.ridge)
