"""Datasets whose classes come on misleading backgrounds: each image belongs to a group, ``"landbird on water"``."""

from __future__ import annotations

from pathlib import Path

from ...catalogue.datasets import entry
from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import BadImages, Listing, Source
from ..walking import entries, is_folder, looks_like_image
from .places import listed, names_of, read_table, root_of, unlike, whole

__all__ = ["list_spawrious", "list_waterbirds"]

_BIRDS, _PLACES = ("landbird", "waterbird"), ("land", "water")
_WATERBIRDS = ("waterbird_complete95_forest2water2", "waterbirds_v1.0")
_SPLIT = {0: "train", 1: "validation", 2: "test"}

_DOGS = ("bulldog", "corgi", "dachshund", "labrador")
_ORDER = ("bulldog", "dachshund", "labrador", "corgi")  # in which the benchmarks list their places
_PER_PLACE = 3168

# Places of training and of testing by benchmark, in the order above; and what one-to-one puts every dog on besides.
_BENCHMARKS: dict[str, tuple[str, str, str]] = {
    "o2o_easy": ("desert jungle dirt snow", "dirt snow desert jungle", "beach"),
    "o2o_medium": ("mountain beach dirt jungle", "jungle dirt beach snow", "desert"),
    "o2o_hard": ("jungle mountain snow desert", "mountain snow desert jungle", "beach"),
    "m2m_easy": ("desert mountain dirt jungle", "dirt jungle mountain desert", ""),
    "m2m_medium": ("beach snow mountain desert", "desert mountain beach snow", ""),
    "m2m_hard": ("dirt jungle snow beach", "snow beach dirt jungle", ""),
}


def list_waterbirds(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """``metadata.csv`` with ``img_filename``, ``y``, ``place`` and ``split``; all three official splits."""
    root = root_of(settings, base)
    home = next((f for f in (*(root / name for name in _WATERBIRDS), root) if (f / "metadata.csv").is_file()), None)
    if home is None:
        raise unlike(settings, root, [f"{name}/metadata.csv" for name in _WATERBIRDS] + ["metadata.csv"])
    rows: dict[str, list[tuple[str, int]]] = {split: [] for split in _SPLIT.values()}
    groups: dict[str, list[str]] = {split: [] for split in _SPLIT.values()}
    table = home / "metadata.csv"
    for number, row in enumerate(read_table(table, ["img_filename", "y", "place", "split"]), start=2):
        bird, place, part = (whole(row[name]) for name in ("y", "place", "split"))
        if bird not in (0, 1) or place not in (0, 1) or part not in _SPLIT:
            raise DataError(f"{table}, line {number}: y and place must be 0 or 1, split 0, 1 or 2")
        split = _SPLIT[part]
        rows[split].append((row["img_filename"], bird))
        groups[split].append(f"{_BIRDS[bird]} on {_PLACES[place]}")
    listings: dict[str, Listing] = {s: listed(home, rows[s], settings, groups[s]) for s in rows if rows[s]}
    if "train" not in listings or "test" not in listings:
        raise DataError(f"{table} names no image of the training or of the test split: unpack the dataset again")
    return Source(settings.name, names_of(settings, _BIRDS), listings)


def list_spawrious(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """One of the six benchmarks: ``spawrious224/{0,1}/PLACE/DOG/*.png``, chosen as its authors do.

    Where they take part of a folder (one-to-one: 97 % and 87 % of the images of a dog on its own place), the first by
    name are taken.
    """
    root = root_of(settings, base)
    benchmark = entry(settings.name).options["benchmark"]
    home = next((f for f in (root / "spawrious224", root) if (f / "0").is_dir()), None)
    if home is None:
        raise unlike(settings, root, ("spawrious224/0/PLACE/DOG/*.png", "0/PLACE/DOG/*.png"))
    listings: dict[str, Listing] = {}
    for split, parts in zip(("train", "test"), _combinations(benchmark), strict=True):
        rows: list[tuple[str, int]] = []
        groups: list[str] = []
        for dog, place, half, share in parts:
            folder = f"{half}/{place}/{dog}"
            names = _pictures(home / folder, settings)
            names = names[: round(share * len(names))]
            rows += [(f"{folder}/{name}", _DOGS.index(dog)) for name in names]
            groups += [f"{dog} in {place}"] * len(names)
        listings[split] = listed(home, rows, settings, groups)
    return Source(settings.name, names_of(settings, _DOGS), listings)


Part = tuple[str, str, int, float]


def _combinations(benchmark: str) -> tuple[list[Part], list[Part]]:
    """``(dog, place, half of the dataset, share of the folder)`` of training and of testing."""
    train, test, filler = (text.split() for text in _BENCHMARKS[benchmark])
    if not filler:  # many to many: pairs of dogs share pairs of places
        pairs = {0: (0, 1), 1: (1, 0), 2: (2, 3), 3: (3, 2)}
        both = [[(d, p[j], 0, 1.0) for k, d in enumerate(_ORDER) for j in pairs[k]] for p in (train, test)]
        return both[0], both[1]
    shares = (int(0.97 * _PER_PLACE) / _PER_PLACE, int(0.87 * _PER_PLACE) / _PER_PLACE)
    own = [(dog, train[k], half, shares[half]) for k, dog in enumerate(_ORDER) for half in (0, 1)]
    rest = [(dog, filler[0], half, 1 - shares[half]) for dog in _ORDER for half in (0, 1)]
    return own + rest, [(dog, test[k], half, 1.0) for k, dog in enumerate(_ORDER) for half in (0, 1)]


def _pictures(folder: Path, settings: DatasetSettings) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist, but {settings.name} needs it: unpack that part of the dataset too")
    names = [entry.name for entry in entries(folder) if looks_like_image(entry.name) and not is_folder(entry)]
    if not names:
        raise DataError(f"{folder} holds no image, but {settings.name} needs it: unpack that part of the dataset again")
    return sorted(names, key=lambda name: (len(name), name))  # 2.png before 10.png
