"""Every dataset by name: the one place to enter a new one.

An entry says which layout its images come in (a key of ``LAYOUTS``), what tells it apart from
others of that layout, and how large it is as published, which is what presets estimate their cost from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CATALOGUE", "LAYOUTS", "OPEN", "PLACED_BY_SPLIT", "Entry", "entry"]


@dataclass(frozen=True)
class Entry:
    """One dataset.

    Attributes:
        layout: how its files are arranged.
        classes, train, test: numbers as published; 0: whatever the user brings.
        options: facts for the reader of the layout.
        root: whether its files lie in the folder ``dataset.root``: ``needed``; ``optional``; ``none``, it has no files.
        groups: whether its images belong to groups, on which the worst accuracy is told.
    """

    layout: str
    classes: int = 0
    train: int = 0
    test: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    root: Literal["needed", "optional", "none"] = "needed"
    groups: bool = False


def _imagenet(subset: str, classes: int) -> Entry:
    train = 1_281_167 if classes == 1000 else (126_689 if classes == 100 else 1_300 * classes)
    return Entry("imagenet", classes, train, 50 * classes, {"subset": subset})


def _spawrious(benchmark: str) -> Entry:
    return Entry("spawrious", 4, 25_344, 25_344, {"benchmark": benchmark}, groups=True)


CATALOGUE: dict[str, Entry] = {
    "digits": Entry("digits", 10, 1_797, root="none"),
    "parquet": Entry("parquet"),
    "folder": Entry("folder"),
    "webdataset": Entry("webdataset"),
    "imagenet-1k": _imagenet("", 1000),
    "imagenet-100": _imagenet("imagenet-100", 100),
    **{
        f"imagenet-{name}": _imagenet(f"imagenet-{name}", 10)
        for name in ("birds", "fruits", "cats", "imagenette", "imagewoof", "a", "b", "c", "d", "e")
    },
    "cifar10": Entry("cifar", 10, 50_000, 10_000, {"folder": "cifar-10-batches-bin", "archive": "cifar-10-binary"}),
    "cifar100": Entry("cifar", 100, 50_000, 10_000, {"folder": "cifar-100-binary", "archive": "cifar-100-binary"}),
    "food101": Entry("food101", 101, 75_750, 25_250),
    "flowers102": Entry("flowers102", 102, 1_020, 6_149),
    "cub200": Entry("cub200", 200, 5_994, 5_794),
    "stanford-dogs": Entry("stanford-dogs", 120, 12_000, 8_580),
    "artbench": Entry("splits", 10, 50_000, 10_000, {"folder": "artbench-10-imagefolder-split"}),
    "waterbirds": Entry("waterbirds", 2, 4_795, 5_794, groups=True),
    **{
        f"spawrious-{kind}-{level}": _spawrious(f"{kind}_{level}")
        for kind in ("o2o", "m2m")
        for level in ("easy", "medium", "hard")
    },
}

LAYOUTS: dict[str, str] = {
    "cifar": "clpdd.datasets.sources.cifar:list_cifar",
    "cub200": "clpdd.datasets.sources.published:list_cub",
    "digits": "clpdd.datasets.sources.digits:list_digits",
    "flowers102": "clpdd.datasets.sources.published:list_flowers",
    "folder": "clpdd.datasets.sources.folder:list_folder",
    "food101": "clpdd.datasets.sources.published:list_food",
    "hf": "clpdd.datasets.sources.hub:list_hub",
    "imagenet": "clpdd.datasets.sources.imagenet:list_imagenet",
    "parquet": "clpdd.datasets.sources.parquet:list_parquet",
    "spawrious": "clpdd.datasets.sources.grouped:list_spawrious",
    "splits": "clpdd.datasets.sources.published:list_splits",
    "stanford-dogs": "clpdd.datasets.sources.published:list_dogs",
    "torchvision": "clpdd.datasets.sources.hub:list_torchvision",
    "waterbirds": "clpdd.datasets.sources.grouped:list_waterbirds",
    "webdataset": "clpdd.datasets.sources.webdataset:list_webdataset",
}
"""Layout -> ``"module:function"``, the reader of images that lie so; imported when it is needed."""

OPEN = {"hf": "hf", "torchvision": "torchvision"}
"""Prefix of names that lie outside the catalogue -> layout: ``hf:owner/name``, ``torchvision:Name``."""

PLACED_BY_SPLIT = ("parquet", "folder", "webdataset")
"""Layouts whose splits are placed by ``train``, ``validation`` and ``test``; others lie below ``root``."""


def entry(name: str) -> Entry:
    """The entry of a dataset. Raises ``ValueError`` for an unknown name."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in OPEN and rest:
        return Entry(OPEN[prefix], options={"name": rest}, root="optional" if prefix == "hf" else "needed")
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"unknown dataset {name!r}; {hint}Known are {', '.join(CATALOGUE)}, hf:OWNER/NAME and torchvision:NAME"
        )
    return CATALOGUE[name]
