"""The reader of a dataset's layout, by the dataset's name in the catalogue."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from ...catalogue.datasets import LAYOUTS, entry
from ...config.dataset import DatasetSettings
from ..listing import BadImages, Source

__all__ = ["Reader", "module_of", "reader_of"]

Reader = Callable[[DatasetSettings, Path, BadImages], Source]
"""Settings, the folder that their paths are relative to, and who takes bad images -> the images."""


def reader_of(name: str) -> Reader:
    """Import the reader of the dataset called ``name``. Raises ``ValueError`` for one that the catalogue has not."""
    module, _, function = LAYOUTS[entry(name).layout].partition(":")
    reader: Reader = getattr(importlib.import_module(module), function)
    return reader


def module_of(name: str) -> str:
    """The dotted name of the module that reads a dataset: where ``code_digest`` starts for it."""
    return LAYOUTS[entry(name).layout].partition(":")[0]
