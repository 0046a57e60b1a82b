"""Datasets in the very layout they are published in: folders of images and list files that name split and class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...catalogue.datasets import entry
from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import BadImages, Listing, Source
from .folder import list_roots
from .places import find, listed, matlab, names_of, read_lines, root_of, unlike, whole

__all__ = ["list_cub", "list_dogs", "list_flowers", "list_food", "list_splits"]


def _home(settings: DatasetSettings, base: Path, folder: str, proof: str) -> Path:
    """``root/folder``, or ``root`` itself: whichever holds ``proof``."""
    root = root_of(settings, base)
    for home in (root / folder, root):
        if (home / proof).exists():
            return home
    raise unlike(settings, root, (f"{folder}/{proof}", proof))


def list_splits(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Image folders below ``train`` and ``test``, and ``val`` where there is one."""
    folder = entry(settings.name).options["folder"]
    home = _home(settings, base, folder, "train")
    test = find(home, ["test"])
    if test is None:
        raise unlike(settings, home, ("train/ and test/ with one folder per class",))
    source = list_roots({"train": [home / "train"], "test": [test]}, settings, bad)
    return Source(settings.name, source.class_names, source.listings)


def list_food(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Food-101: ``meta/train.txt`` and ``meta/test.txt`` name images as ``apple_pie/1005649``."""
    home = _home(settings, base, "food-101", "meta/classes.txt")
    classes = [line.strip() for line in read_lines(home / "meta/classes.txt")]
    label_of = {name: label for label, name in enumerate(classes)}
    listings: dict[str, Listing] = {}
    for split in ("train", "test"):
        path, rows = home / f"meta/{split}.txt", []
        for number, line in enumerate(read_lines(path), start=1):
            folder = line.strip().split("/")[0]
            if folder not in label_of:
                raise DataError(f"{path}, line {number}: {folder!r} is no class of meta/classes.txt")
            rows.append((f"{line.strip()}.jpg", label_of[folder]))
        listings[split] = listed(home / "images", rows, settings)
    return Source(settings.name, names_of(settings, [name.replace("_", " ") for name in classes]), listings)


def list_flowers(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Flowers-102: ``jpg/image_00001.jpg``, ``imagelabels.mat`` and ``setid.mat``; all three official splits.

    The files hold no names: classes are called by their number unless ``dataset.class_names`` says otherwise.
    """
    home = _home(settings, base, "flowers-102", "setid.mat")
    path = home / "imagelabels.mat"
    labels = np.atleast_1d(matlab(path, str(path), "labels")).astype(np.int64)
    listings: dict[str, Listing] = {}
    for split, name in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        numbers = np.sort(np.atleast_1d(matlab(home / "setid.mat", str(home / "setid.mat"), name)).astype(np.int64))
        if len(numbers) and not 1 <= numbers[0] <= numbers[-1] <= len(labels):
            raise DataError(f"{home / 'setid.mat'}: {name} numbers images beyond the {len(labels)} of imagelabels.mat")
        rows = [(f"image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in numbers]
        listings[split] = listed(home / "jpg", rows, settings)
    return Source(settings.name, names_of(settings, [str(number) for number in range(1, labels.max() + 1)]), listings)


def list_cub(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """CUB-200-2011: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and ``classes.txt``."""
    home = _home(settings, base, "CUB_200_2011", "images.txt")
    images, labels, training, names = (
        _numbered(home / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for number, name in images.items():
        part, label = whole(training.get(number, "")), whole(labels.get(number, ""))
        if part not in (0, 1) or label is None or str(label) not in names:
            raise DataError(
                f"{home}: image {number} ({name}) has the class {labels.get(number)!r} and the split "
                f"{training.get(number)!r}, but one of classes.txt is needed, and 0 (test) or 1 (training)"
            )
        rows["train" if part else "test"].append((name, label - 1))
    try:
        ordered = [names[str(number)] for number in range(1, len(names) + 1)]  # whatever the order of the lines
    except KeyError as error:
        raise DataError(f"{home / 'classes.txt'} names no class {error}: its numbers must run from 1 on") from None
    own = [name.split(".", 1)[-1].replace("_", " ") for name in ordered]
    listings: dict[str, Listing] = {split: listed(home / "images", found, settings) for split, found in rows.items()}
    return Source(settings.name, names_of(settings, own), listings)


def _numbered(path: Path) -> dict[str, str]:
    """Lines ``17 something`` as a mapping."""
    pairs = [line.strip().partition(" ") for line in read_lines(path)]
    numbered: dict[str, str] = {}
    for number, _, rest in pairs:
        if numbered.setdefault(number, rest.strip()) != rest.strip():
            raise DataError(f"{path} gives the number {number} twice: {numbered[number]} and {rest.strip()}")
    return numbered


def list_dogs(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Stanford Dogs: ``Images/n02085620-Chihuahua/*.jpg``, ``train_list.mat`` and ``test_list.mat``."""
    root = root_of(settings, base)
    lists = next((f for f in (root, root / "lists") if (f / "train_list.mat").is_file()), None)
    images = find(root, ["Images"])
    if lists is None or images is None:
        raise unlike(settings, root, ("Images/, and train_list.mat and test_list.mat beside it or in lists/",))
    named: dict[str, list[str]] = {}
    for split in ("train", "test"):
        path = lists / f"{split}_list.mat"
        named[split] = [str(name) for name in np.atleast_1d(matlab(path, str(path), "file_list"))]
    folders = sorted({name.split("/")[0] for name in named["train"]})
    label_of = {name: label for label, name in enumerate(folders)}
    listings: dict[str, Listing] = {}
    for split, names in named.items():
        stray = [name for name in names if name.split("/")[0] not in label_of]
        if stray:
            raise DataError(f"{lists / f'{split}_list.mat'}: {stray[0]} is of a class without training images")
        listings[split] = listed(images, [(name, label_of[name.split("/")[0]]) for name in names], settings)
    own = [name.split("-", 1)[-1].replace("_", " ") for name in folders]
    return Source(settings.name, names_of(settings, own), listings)
