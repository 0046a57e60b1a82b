"""What a notebook shows of features and their moments: a line of words in place of arrays.

The classes themselves belong to the code that decides artifacts, which is not touched for the sake of a view.
"""

from __future__ import annotations

from dataclasses import fields
from html import escape
from typing import Self

from ..features.kernels import Kernels
from ..features.store import FeatureStore
from ..runtime.notebook import html_table

__all__ = ["ShownFeatures", "ShownKernels"]


class ShownKernels(Kernels):
    """``Kernels`` that are short in a notebook."""

    @classmethod
    def of(cls, kernels: Kernels) -> Self:
        """The same values."""
        return cls(**{field.name: getattr(kernels, field.name) for field in fields(Kernels)})

    def _best(self) -> float:
        return max(score["validation_top1"] for score in self.ridge_scores)

    def __repr__(self) -> str:
        return (
            f"Kernels({self.encoder.get('name')}: {self.n:,} training images, {len(self.class_names)} classes, "
            f"{len(self.mean)} features, effective rank {self.effective_rank:.1f}, probe on all of them "
            f"{self._best():.1f} % of validation)"
        )

    def _repr_html_(self) -> str:
        rows = [(f"{score['ridge']:g}", score["validation_top1"]) for score in self.ridge_scores]
        table = html_table(("relative ridge", "validation top-1 %"), rows, "the probe on all training images")
        return f"<p>{escape(repr(self))}</p>{table}"


class ShownFeatures(FeatureStore):
    """A ``FeatureStore`` that is short in a notebook."""

    def __repr__(self) -> str:
        return (
            f"FeatureStore({self.split}: {len(self):,} x {self.dim} features in {self.dtype}, "
            f"{len(self.class_names)} classes, by {self.encoder.get('name')})"
        )
