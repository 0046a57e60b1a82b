"""What a data set is called on a page."""

from __future__ import annotations

import re
from pathlib import PurePath

from ..catalogue.datasets import CATALOGUE
from ..config.dataset import DatasetSettings

__all__ = ["dataset_title"]

_COMMON = {"train", "training", "data", "dataset", "images", "default", ""}
"""Names of files and folders that say nothing of what lies in them."""


def dataset_title(named: str, settings: DatasetSettings) -> str:
    """The title of the settings, a published set's name, or the name of the files that a layout was given.

    Args:
        named: what results call it; of files without a title that is the layout: ``folder``, ``parquet``.
    """
    if settings.title or named != settings.name or named not in CATALOGUE or CATALOGUE[named].classes:
        return named
    given = settings.root if settings.train is None else settings.train
    path = given if isinstance(given, str) else (given or [""])[0]
    for part in reversed(PurePath(path).parts):
        name = re.sub(r"\.(parquet|tar|zip|tgz|gz)$", "", part)
        name = re.sub(r"[*?\[{].*$", "", name)
        name = re.sub(r"[-_. ]?\d+-of-\d+$", "", name)
        name = re.sub(r"([-_. ]?(train|training))?[-_. ]*$", "", name)
        if name.lower() not in _COMMON and re.search(r"\w", name):
            return name[:80]
    return named
