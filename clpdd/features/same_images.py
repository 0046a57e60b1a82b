"""Whether features are those of an index's images."""

from __future__ import annotations

from pathlib import Path

from ..datasets.index import Index
from ..errors import ArtifactError
from .store import FeatureStore

__all__ = ["refuse_other_images"]


def refuse_other_images(store: FeatureStore, index: Path) -> None:
    """Raise ``ArtifactError`` where ``index``, of the store's split, is there and holds other images than the store."""
    if index.exists() and Index.open(index).digest != store.index:
        raise ArtifactError(f"{store.path} does not hold the images of {index}: run cache again")
