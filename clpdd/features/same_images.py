"""Whether features are those of an index's images."""

from __future__ import annotations

from ..datasets.index import Index
from ..errors import ArtifactError
from .store import FeatureStore

__all__ = ["refuse_other_images"]


def refuse_other_images(store: FeatureStore, index: Index) -> None:
    """Raise ``ArtifactError`` where ``index`` holds other images than those that the features are of.

    The first time it is asked, an index reads its whole file for its digest.
    """
    if index.digest != store.index:
        raise ArtifactError(f"{store.path} does not hold the images of {index.path}: run cache again")
