"""ImageNet-1K and subsets of its classes: unpacked folders, the official archives, or Parquet shards of the hub."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath

import numpy as np

from ...catalogue.datasets import entry
from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import BadImages, File, Files, Listing, Source, Subset, max_file_bytes
from .archives import members, nested_members, read_members
from .folder import scan
from .parquet import list_tables
from .places import find, matlab, names_of, read_lines, read_table, root_of, unlike

__all__ = ["list_imagenet", "subset", "wordnet_ids"]

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT_TAR, _DEVKIT = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12/data"
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_SOLUTION = "LOC_val_solution.csv"
_LOOKED = (
    "train/ and val/ (or validation/) with one folder per WordNet id",
    f"{_TRAIN_TAR}, {_VAL_TAR} and {_DEVKIT_TAR} (or {_DEVKIT}/)",
    f"ILSVRC/Data/CLS-LOC/ with train/ and val/, and {_SOLUTION}",
    "data/train-*.parquet and data/validation-*.parquet",
)


@cache
def wordnet_ids() -> tuple[str, ...]:
    """The 1,000 WordNet ids in the order of the labels, which is their alphabetical one."""
    from timm.data import ImageNetInfo  # slow, and needed for ImageNet alone

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def subset(name: str) -> tuple[str, ...]:
    """The WordNet ids of a named subset in the order of its labels; ``""`` is all of ImageNet-1K."""
    if not name:
        return wordnet_ids()
    text = (resources.files("clpdd.datasets.sources") / "imagenet_subsets.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        key, _, ids = line.partition(":")
        if key == name:
            return tuple(ids.split())
    raise DataError(f"there is no subset of ImageNet named {name}")


def _readable(ids: tuple[str, ...]) -> list[str]:
    """The first word for each id; with the id behind it where two classes share the word, as crane does."""
    from timm.data import ImageNetInfo  # slow, and needed for ImageNet alone

    info = ImageNetInfo("imagenet-1k")
    words = {i: info.label_name_to_description(i).split(",")[0].strip() for i in wordnet_ids()}
    taken = [word.lower() for word in words.values()]
    return [words[i] if taken.count(words[i].lower()) == 1 else f"{words[i]} ({i})" for i in ids]


def list_imagenet(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """The official training split as ``train``, the official validation split as ``test``.

    Raises ``DataError``: none of the layouts is there, or one is incomplete or damaged.
    """
    root = root_of(settings, base)
    ids = subset(entry(settings.name).options["subset"])
    label_of = {i: label for label, i in enumerate(ids)}
    listings = (
        _archives(root, settings, label_of)
        or _shards(root, settings, label_of)
        or _folders(root, settings, label_of, bad)
        or _folders(root / "ILSVRC/Data/CLS-LOC", settings, label_of, bad, root)
    )
    if listings is None:
        raise unlike(settings, root, _LOOKED)
    return Source(settings.name, names_of(settings, _readable(ids)), listings)


def _files(pairs: list[tuple[str, File]], label_of: dict[str, int], settings: DatasetSettings) -> Files:
    ordered = sorted(pairs, key=lambda pair: (label_of[pair[0]], pair[1].name))
    labels = [label_of[i] for i, _ in ordered]
    return Files([file for _, file in ordered], labels, max_file_bytes(settings.max_pixels))


# -- folders -----------------------------------------------------------------------------------------------------------


def _folders(
    root: Path, settings: DatasetSettings, label_of: dict[str, int], bad: BadImages, top: Path | None = None
) -> dict[str, Listing] | None:
    train, test = find(root, ["train"]), find(root, ["val", "validation"])
    if train is None or test is None or not (train.is_dir() and test.is_dir()):
        return None
    found = {"train": _classes(train, "train", settings, label_of, bad)}
    flat = find(test, (f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 50_000)))
    if flat is None:
        found["test"] = _classes(test, "test", settings, label_of, bad)
    else:
        truth = _truth(top or root)
        names = sorted(path.name for path in test.glob("ILSVRC2012_val_*.JPEG"))
        pairs = [(truth[PurePosixPath(n).stem], File(test.as_posix(), n)) for n in names if _known(n, truth, test)]
        found["test"] = _files([pair for pair in pairs if pair[0] in label_of], label_of, settings)
    return dict(found)


def _classes(root: Path, split: str, settings: DatasetSettings, label_of: dict[str, int], bad: BadImages) -> Files:
    classes = scan([root], split, bad, label_of.keys())
    lacking = sorted(label_of.keys() - classes.keys())
    if lacking:
        raise DataError(
            f"{root} lacks {len(lacking)} of the {len(label_of)} class folders of {settings.name}: "
            f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
        )
    return _files([(i, file) for i, files in classes.items() for file in files], label_of, settings)


# -- archives ----------------------------------------------------------------------------------------------------------


def _archives(root: Path, settings: DatasetSettings, label_of: dict[str, int]) -> dict[str, Listing] | None:
    if not (root / _TRAIN_TAR).is_file():
        return None
    if not (root / _VAL_TAR).is_file():
        raise DataError(f"{root} holds {_TRAIN_TAR}, but not {_VAL_TAR}: both are needed")
    train = list(nested_members(root / _TRAIN_TAR, label_of.keys()))
    lacking = sorted(label_of.keys() - {i for i, _ in train})
    if lacking:
        raise DataError(f"{root / _TRAIN_TAR} lacks the class {lacking[0]} (and {len(lacking) - 1} more)")
    truth = _truth(root)
    test = [
        (truth[PurePosixPath(file.name).stem], file)
        for file in members(root / _VAL_TAR)
        if _known(file.name, truth, root / _VAL_TAR)
    ]
    chosen = [pair for pair in test if pair[0] in label_of]
    return {"train": _files(train, label_of, settings), "test": _files(chosen, label_of, settings)}


def _known(name: str, truth: dict[str, str], where: Path) -> bool:
    if PurePosixPath(name).stem not in truth:
        raise DataError(f"{where}: the image {name} has no entry in the ground truth of the validation split")
    return True


def _truth(root: Path) -> dict[str, str]:
    """Validation image -> WordNet id, from the development kit, packed or not, or from Kaggle's table."""
    if (root / _SOLUTION).is_file():
        rows = read_table(root / _SOLUTION, ["ImageId", "PredictionString"])
        return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    if (root / _DEVKIT / _TRUTH).is_file():
        numbers = read_lines(root / _DEVKIT / _TRUTH)
        synsets = matlab(root / _DEVKIT / _META, str(root / _DEVKIT / _META), "synsets")
    elif (root / _DEVKIT_TAR).is_file():
        kit = read_members(root / _DEVKIT_TAR, [_TRUTH, _META])
        numbers = kit[_TRUTH].decode("ascii", "replace").split()
        synsets = matlab(kit[_META], f"{root / _DEVKIT_TAR}, {_META}", "synsets")
    else:
        raise DataError(
            f"the labels of the validation images are missing in {root}: put {_DEVKIT_TAR}, the unpacked {_DEVKIT}/ "
            f"or {_SOLUTION} there"
        )
    ids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    try:
        return {f"ILSVRC2012_val_{k:08d}": ids[int(number)] for k, number in enumerate(numbers, start=1)}
    except (KeyError, ValueError) as error:
        raise DataError(f"the validation split's ground truth in {root} names no class of {_META}: {error}") from error


# -- Parquet shards ----------------------------------------------------------------------------------------------------


def _shards(root: Path, settings: DatasetSettings, label_of: dict[str, int]) -> dict[str, Listing] | None:
    folder = next((f for f in (root / "data", root) if list(f.glob("train-*.parquet"))), None)
    if folder is None:
        return None
    paths = {"train": sorted(folder.glob("train-*.parquet")), "test": sorted(folder.glob("validation-*.parquet"))}
    if not paths["test"]:
        raise DataError(f"{folder} holds train-*.parquet, but not validation-*.parquet: both are needed")
    chosen = {"class_names": list(wordnet_ids()), "image_column": "image", "label_column": "label"}
    whole = list_tables(paths, settings.model_copy(update=chosen))
    label_at = np.full(1000, -1, np.int64)
    for label, number in enumerate(wordnet_ids()):
        label_at[label] = label_of.get(number, -1)
    found: dict[str, Listing] = {}
    for split, listing in whole.listings.items():
        labels = label_at[listing.labels]
        rows = np.flatnonzero(labels >= 0)
        found[split] = Subset(listing, rows, labels[rows])
    return found
