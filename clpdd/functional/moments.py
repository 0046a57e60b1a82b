"""Second moments of labelled features, summed in one pass, and the exact MSE loss they give.

Blocks are widened to float64 before their products are taken, so the sums carry float64 rounding only. Float32
products would be twice as fast, but their rounding, about 1e-7 of the trace however many rows there are, exceeds the
ridges of the grid: on a million rows a ridge of 1e-4 is 1e-10 of the trace. Half of the products are saved instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericalError

__all__ = ["Moments", "mse_loss", "stream_moments"]

_PANEL = 128  # columns whose products are taken at once: narrower saves more of them, wider runs closer to the peak


@dataclass(frozen=True)
class Moments:
    """Sums over the rows of ``Z (n, d)`` with labels in ``C`` classes; all float64 but the counts.

    Attributes:
        counts: ``(C,)`` int64 rows per class.
        gram: ``(d, d)``, ``G = Z^T Z``, uncentred.
        cross: ``(d, C)``, ``M = Z^T Y`` with one-hot ``Y``, uncentred: column ``c`` is the sum over class ``c``.
    """

    counts: Tensor
    gram: Tensor
    cross: Tensor

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    @property
    def mean(self) -> Tensor:
        """``(d,)`` mean of all rows: every row is in just one class, so the columns of ``M`` add up to the total."""
        return self.cross.sum(1) / self.n

    @property
    def class_means(self) -> Tensor:
        """``(C, d)`` mean of every class."""
        return self.cross.T / self.counts[:, None]

    @property
    def centred_gram(self) -> Tensor:
        """``(d, d)``, the Gram matrix of the rows less their mean."""
        mean = self.mean
        return self.gram - self.n * torch.outer(mean, mean)

    @property
    def variances(self) -> Tensor:
        """``(d,)`` variance of every feature, over ``n``."""
        return self.gram.diagonal() / self.n - self.mean.square()

    def scaled(self, factors: Tensor) -> Moments:
        """The moments of the rows times ``factors (d,)``."""
        return Moments(self.counts, self.gram * torch.outer(factors, factors), self.cross * factors[:, None])

    @property
    def centred_cross(self) -> Tensor:
        """``(d, C)``, centred features with one-hot targets; subtracting ``1/C`` from these changes nothing."""
        return self.cross - torch.outer(self.mean, self.counts.double())


def stream_moments(blocks: Iterator[tuple[Tensor, Tensor]], classes: int) -> Moments:
    """Counts, ``G`` and ``M`` of features that arrive in blocks ``((b, d), (b,) int64 labels)``, in one pass.

    Sums and products are taken in float64. Raises ``NumericalError`` when the features are not finite.
    """
    counts = torch.zeros(classes, dtype=torch.int64)
    gram = sums = torch.empty(0)
    for features, labels in blocks:
        Z = features.double()  # (b, d)
        if not len(gram):
            gram, sums = Z.new_zeros(Z.shape[1], Z.shape[1]), Z.new_zeros(classes, Z.shape[1])
        _add_upper(gram, Z)
        sums.index_add_(0, labels, Z)
        counts += torch.bincount(labels, minlength=classes)
    if not bool(torch.isfinite(gram.triu()).all()):
        raise NumericalError("the features hold NaN or infinite values")
    return Moments(counts, gram.triu() + gram.triu(1).T, sums.T.contiguous())


def _add_upper(gram: Tensor, Z: Tensor) -> None:
    """Add ``Z^T Z`` to the upper triangle of ``gram (d, d)``, panel by panel; what lies below it is left undefined."""
    for start in range(0, len(gram), _PANEL):
        stop = start + _PANEL
        gram[start:stop, start:].addmm_(Z[:, start:stop].T, Z[:, start:])


def mse_loss(
    W: Tensor,
    gram: Tensor,
    cross: Tensor,
    counts: Tensor,
    *,
    mean: Tensor | None = None,
    centre_targets: bool = True,
) -> Tensor:
    r"""Exact full-data squared error of a linear probe in ``O(d^2 C)``, whatever the number of rows.

    .. math:: \frac{1}{n} \|Z_c W - Y_c\|^2 =
              \frac{1}{n} (\mathrm{tr}(W^T G_c W) - 2\,\mathrm{tr}(W^T M_c) + \|Y_c\|^2)

    with ``Z_c = Z - mean`` and ``Y_c = Y - 1/C`` (CLP-DD, arXiv 2605.07194, the MSE outer loss). Summed over classes,
    averaged over rows. Differentiable in ``W``; computed in the precision of ``gram``.

    Args:
        W: ``(d, C)``.
        gram, cross, counts: ``(d, d)``, ``(d, C)`` and ``(C,)`` uncentred moments, as in ``Kernels``.
        mean: ``(d,)`` what is subtracted from the features, any vector; ``None`` subtracts nothing.
        centre_targets: subtract ``1/C`` from the one-hot targets.

    Returns:
        A scalar.
    """
    W = W.to(gram.dtype)
    sizes = counts.to(gram.dtype)  # (C,)
    n, classes = sizes.sum(), len(counts)
    shift = 1.0 / classes if centre_targets else 0.0
    total = cross.sum(1)  # (d,) sum of all rows
    M = cross - shift * total[:, None]
    G = gram
    if mean is not None:
        m = mean.to(gram.dtype)
        M = M - torch.outer(m, sizes - n * shift)
        G = G - torch.outer(total, m) - torch.outer(m, total) + n * torch.outer(m, m)
    targets = n * (1 - shift) if centre_targets else n  # |y - 1/C|^2 = 1 - 1/C for every row
    return ((W * (G @ W)).sum() - 2 * (W * M).sum() + targets) / n
