r"""What a set carries: its share of full data, how many real images it is worth, and how near its class means are.

Everything is measured with the closed-form probe on images as they are: real ones have their cached features, so that
a whole few-shot curve costs seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ..features.by_class import ClassFeatures
from ..functional import coreset_memory
from ..functional.coresets import herding
from ..functional.flow import class_centres
from ..functional.seeding import generator
from ..functional.targets import as_targets
from ..probe.closed_form import fit_ridge
from ..probe.linear import Probes
from ..probe.scoring import score
from ..probe.views import encode_clean
from .image_counts import worth_on
from .subject import Bench, Subject

__all__ = ["COUNTS", "DRAWS", "Worth", "few_shot_curve", "mean_distance", "worth_of"]

COUNTS = (1, 2, 5, 10, 20, 50)
"""Real images per class on the curve, as far as the smallest class has so many."""

DRAWS = 5
"""Random draws at each count."""

_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a set carries, with one encoder.

    Attributes:
        top1: of the closed-form probe on its images as they are, percent, mean over its draws.
        full: of the closed-form probe on all real data.
        curves: ``random`` and ``herding`` -> ``(images per class, top-1)`` pairs of real images, ascending.
        mean_distance: see ``mean_distance``.
    """

    top1: float
    full: float
    curves: dict[str, list[tuple[int, float]]]
    mean_distance: float

    @property
    def share_of_full(self) -> float:
        """``top1`` in percent of ``full``."""
        return 100 * self.top1 / self.full

    @property
    def worth(self) -> dict[str, str]:
        """How many real images per class the set is worth, by the names of ``curves``."""
        return {name: worth_on(curve, self.top1) for name, curve in self.curves.items()}

    def facts(self) -> dict[str, Any]:
        """The attributes, ``share_of_full`` and ``worth`` as JSON values; percent, six decimals."""
        curves = {name: [[count, round(top1, 6)] for count, top1 in curve] for name, curve in self.curves.items()}
        numbers = {"top1": self.top1, "full": self.full, "share_of_full": self.share_of_full}
        distance = {"mean_distance": self.mean_distance}
        worth = {"worth": self.worth, "curves": curves}
        return {name: round(value, 6) for name, value in (numbers | distance).items()} | worth

    def described(self) -> str:
        """In words, one line for each."""
        worth = ", ".join(f"{count} {name}" for name, count in self.worth.items())
        lines = [
            f"closed form on the images as they are: {self.top1:.2f} %, {self.share_of_full:.1f} % of all data's "
            f"{self.full:.2f} %",
            f"worth {worth} real images per class",
            f"class means lie {self.mean_distance:.2f} times as far from the real ones as the mean of all classes does",
        ]
        for name, curve in self.curves.items():
            points = ", ".join(f"{count}: {top1:.2f}" for count, top1 in curve)
            lines.append(f"{name} real images per class, top-1 %: {points}")
        return "\n".join(lines)


def worth_of(subject: Subject, ridge: float) -> Worth:
    """Measure a set. Its test images are those of its bench; real images are of the training split.

    Args:
        ridge: relative, of the closed-form probe on the set and on real images alike.
    """
    bench, settings = subject.bench, subject.settings
    Z = encode_clean(bench.encoder, subject.images, settings.encoder_batch, settings.precision)  # (D, n, d)
    probes = fit_ridge(Z, subject.targets, bench.classes, bench.kernels.mean, ridge, bench.encoder.parts)
    whole = Probes(bench.kernels.weights[None].to(Z.device), bench.kernels.bias[None].to(Z.device))
    return Worth(
        top1=fmean(_top1(probes, bench)),
        full=_top1(whole, bench)[0],
        curves=few_shot_curve(bench, ridge, subject.seed),
        mean_distance=fmean(mean_distance(own, y, bench) for own, y in zip(Z, subject.targets, strict=True)),
    )


def few_shot_curve(
    bench: Bench, ridge: float, seed: int, counts: Sequence[int] = COUNTS
) -> dict[str, list[tuple[int, float]]]:
    """Top-1 in percent of the closed-form probe on so many real images per class, drawn at random and by herding.

    ``random`` is the mean of ``DRAWS`` draws, each a beginning of a larger one, as a choice by herding is.
    """
    smallest = int(torch.bincount(bench.train.labels, minlength=bench.classes).min())
    tried = [count for count in counts if count <= smallest]
    dim, taken = bench.train.dim, (1 + DRAWS) * tried[-1]  # rows of a class, at most
    features = ClassFeatures(
        bench.train,
        bench.kernels,
        bench.encoder.parts,
        "the few-shot curve",
        lambda label, n: coreset_memory.herding(n, dim, tried[-1]) + DRAWS * n + 3 * taken * dim,
        kept=4 * bench.classes * taken * dim,
    )
    orders: dict[str, list[list[Tensor]]] = {"random": [[] for _ in range(DRAWS)], "herding": [[]]}
    kept: list[Tensor] = []  # of each class all rows that any choice takes, as features
    for label, _, Z in features:
        chosen = [torch.tensor(herding(Z, tried[-1]))]
        drawn = [torch.randperm(len(Z), generator=generator(seed, "few-shot", draw, label)) for draw in range(DRAWS)]
        chosen += [order[: tried[-1]] for order in drawn]
        rows, places = torch.cat(chosen).unique(return_inverse=True)
        kept.append((Z[rows] / features.scale.factors + features.scale.mean).float())
        first, *others = places.split(tried[-1])
        orders["herding"][0].append(first)
        for draw, other in enumerate(others):
            orders["random"][draw].append(other)
    return {
        name: [(count, fmean(_few(bench, ridge, kept, order, count) for order in each)) for count in tried]
        for name, each in orders.items()
    }


def _few(bench: Bench, ridge: float, kept: list[Tensor], order: list[Tensor], count: int) -> float:
    device = bench.encoder.device
    Z = torch.cat([own[rows[:count]] for own, rows in zip(kept, order, strict=True)]).to(device)
    labels = torch.arange(bench.classes).repeat_interleave(count)
    probes = fit_ridge(Z[None], labels[None], bench.classes, bench.kernels.mean, ridge, bench.encoder.parts)
    return _top1(probes, bench)[0]


def _top1(probes: Probes, bench: Bench) -> list[float]:
    return score(probes, bench.judge.blocks(_ROWS)).top1


def mean_distance(Z: Tensor, targets: Tensor, bench: Bench) -> float:
    r"""How far a set's class means lie from the real ones, in units of how far these lie from their common mean.

    .. math:: \sqrt{\sum_c |m_c - \mu_c|^2 \Big/ \sum_c |\mu_c - \mu|^2}

    0: the same means; 1: on the average no nearer than the mean of all classes is.

    Args:
        Z: features ``(n, d)`` of the set's images as they are.
        targets: classes ``(n,)``, or probabilities ``(n, C)``, by which the mean of every class is weighted. A class
            that no image stands for at all is left out of both sums.
    """
    real = bench.kernels.class_means.double()
    probabilities = as_targets(targets, bench.classes).double().cpu()
    shown = probabilities.sum(0) > 0
    means = class_centres(Z.double().cpu(), probabilities[:, shown])
    apart = (means - real[shown]).square().sum()
    return float((apart / (real - real.mean(0))[shown].square().sum()).sqrt())
