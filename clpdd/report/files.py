"""What lies beside the page: files that it links to, by their place relative to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import quote

from ..config.settings import Settings
from ..storage.layout import Layout

__all__ = ["LinkedFile", "linked_files"]


@dataclass(frozen=True)
class LinkedFile:
    """A file or folder: its address relative to the page, its name, and what it is."""

    address: str
    name: str
    meaning: str


def linked_files(layout: Layout, settings: Settings, method: str) -> list[LinkedFile]:
    """Those that are there: of the main method's set with every encoder, and of the results."""
    known = []
    for encoder in settings.encoders:
        folder = layout.distilled(encoder, method)
        known += [
            (folder / "data.parquet", "the set, lossless: opens with Hugging Face datasets, pandas, Arrow"),
            (folder / "images", "the set as PNG files"),
            (folder / "README.md", "its card: how it was made, how to use it"),
        ]
    known += [
        (layout.results / "results.parquet", "a row for every probe"),
        (layout.results / "details.json", "accuracy by class and confusion of every probe"),
        (layout.results / "metrics.json", "means, as dvc metrics show prints them"),
        (layout.results / "report.json", "every number on this page"),
    ]
    found = []
    for path, meaning in known:
        if path.exists() or path.name == "report.json":  # which is written with the page
            name = path.relative_to(layout.root).as_posix() + ("/" if path.is_dir() else "")
            address = quote(os.path.relpath(path, layout.results)) + ("/" if path.is_dir() else "")
            found.append(LinkedFile(address, name, meaning))
    return found
