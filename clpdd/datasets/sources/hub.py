"""Datasets by the name that a library knows them by: Hugging Face ``datasets`` and torchvision."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...catalogue.datasets import entry
from ...config.dataset import DatasetSettings
from ...errors import DataError, first_line
from ..classes import number_labels
from ..decode import Undecodable
from ..listing import BadImages, Images, Labels, Listing, Source, nearest
from .places import names_of, root_of

__all__ = ["VARIANTS", "list_hub", "list_torchvision"]

log = logging.getLogger(__name__)

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


# -- Hugging Face ------------------------------------------------------------------------------------------------------


class _HubRows(Listing):
    """Rows of a split, whose images come encoded, as they are stored."""

    def __init__(self, table: Any, split: str, image: str, labels: Labels, groups: list[str] | None) -> None:
        self._table, self._split, self._image = table, split, image
        self.labels, self.groups = labels, groups

    def name(self, row: int) -> str:
        return f"{self._split}-{row:06d}"

    def where(self, row: int) -> str:
        return f"split {self._split}, row {row} (counted from 0)"

    def digest(self) -> str | None:
        state = getattr(self._table, "_fingerprint", None)  # of the rows and every change made to them
        return None if state is None else f"{self._split} {state}"

    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        for row in rows:
            value = self._table[row][self._image]
            data = value.get("bytes") if isinstance(value, dict) else None
            if data is None and isinstance(value, dict) and value.get("path"):
                try:
                    data = Path(value["path"]).read_bytes()
                except OSError as error:
                    yield Undecodable(f"cannot be read: {(error.strerror or str(error)).lower()}")
                    continue
            yield Undecodable("is null") if data is None else data


def list_hub(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """``hf:OWNER/NAME`` or ``hf:OWNER/NAME/CONFIGURATION``: whatever ``datasets.load_dataset`` finds or downloads.

    ``dataset.root``, where given, is its cache folder. Repositories that need code of their own are refused by the
    library.

    Raises:
        DataError: the library is not installed or does not find the dataset, or a column is missing or of another
            kind.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError("datasets named hf:... are read by the package `datasets`: pip install datasets") from error
    given = entry(settings.name).options["name"]
    owner, *parts = given.split("/")
    folder = base / Path(given).expanduser()
    local = folder.is_dir()
    if not local and owner in ("", ".", "..", "~"):  # a path, and no OWNER/NAME
        raise DataError(f"dataset.name: {settings.name} cannot be had ({folder} is no folder)")
    path = str(folder) if local else "/".join([owner, *parts[:1]])
    configuration = None if local or len(parts) < 2 else "/".join(parts[1:])
    cache = str(base / Path(settings.root).expanduser()) if settings.root else None
    try:
        found = datasets.load_dataset(path, configuration, cache_dir=cache)
    except Exception as error:  # the library raises a hundred kinds
        raise DataError(f"dataset.name: {settings.name} cannot be had ({first_line(error)})") from error
    tables = {own: (split, found[split]) for own, words in _SPLITS.items() for split in found if split in words}
    if "train" not in tables:
        raise DataError(f"{settings.name} has no training split; its splits: {', '.join(found)}")
    for split, table in tables.values():
        _check_columns(datasets, table, settings, split)
    names, labels = _numbered(datasets, tables, settings)
    listings: dict[str, Listing] = {}
    for own, (split, table) in tables.items():
        if own not in labels or (own == "test" and len(labels[own]) and labels[own].max() < 0):
            continue  # published without labels: validation takes its place below
        if len(labels[own]) and not 0 <= labels[own].min() <= labels[own].max() < len(names):
            raise DataError(f"{settings.name}, split {split}: labels must be 0 to {len(names) - 1}")
        groups = None if settings.group_column is None else [str(g) for g in table[settings.group_column]]
        encoded = table.cast_column(settings.image_column, datasets.Image(decode=False))
        listings[own] = _HubRows(encoded, split, settings.image_column, labels[own], groups)
    if "test" not in listings and "validation" in listings:
        listings["test"] = listings.pop("validation")  # as everybody does with ImageNet: the labelled one is the test
    return Source(settings.name, names_of(settings, names), listings)


def _check_columns(datasets: Any, table: Any, settings: DatasetSettings, split: str) -> None:
    wanted = [settings.image_column, settings.label_column, settings.group_column]
    for column, setting in zip(wanted, ("image_column", "label_column", "group_column"), strict=True):
        if column is not None and column not in table.features:
            raise DataError(
                f"{settings.name}, split {split}, has no column {column!r} (dataset.{setting}); its columns: "
                f"{', '.join(table.features)}{nearest(column, table.features)}"
            )
    image = table.features[settings.image_column]
    if not isinstance(image, datasets.Image):
        raise DataError(f"{settings.name}: the column {settings.image_column!r} holds {image}, not images")


def _numbered(
    datasets: Any, tables: dict[str, tuple[str, Any]], settings: DatasetSettings
) -> tuple[list[str], dict[str, Labels]]:
    """Names of the classes and the labels of every split, whether they come as numbers, words or truth values."""
    column = settings.label_column
    feature = tables["train"][1].features[column]
    values = {own: list(table[column]) for own, (_, table) in tables.items()}
    if isinstance(feature, datasets.ClassLabel):
        if any(value is None for held in values.values() for value in held):
            raise DataError(f"{settings.name}: the column {column!r} holds nulls; every image needs a label")
        return list(feature.names), {own: np.asarray(held, np.int64) for own, held in values.items()}
    if "test" in values and set(values["test"]) == {-1}:
        del values["test"]  # published without labels
    named = {own: [(f"{settings.name}, split {tables[own][0]}", held)] for own, held in values.items()}
    names, labels = number_labels(named, settings.class_names, column)
    return names, {own: found[0] for own, found in labels.items()}


# -- torchvision -------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "EMNIST": ("split", {word: word for word in ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")}),
    "FGVCAircraft": ("annotation_level", {word: word for word in ("variant", "family", "manufacturer")}),
    "DTD": ("partition", {str(number): number for number in range(1, 11)}),
    "Imagenette": ("size", {word: word for word in ("full", "320px", "160px")}),
    "Places365": ("small", {"large": False, "small": True}),
}
"""Datasets of torchvision that come in several: the argument that chooses, and its values; the first is the default."""

_WHOLE_TRAINING = {"train": ("trainval", "train-standard")}  # splits of those that have no smaller one


class _Decoded(Sequence[Image.Image]):
    """The images of a torchvision dataset, opened when asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: Any) -> Any:
        image = self._dataset[row][0]
        if not isinstance(image, Image.Image):
            raise ValueError(f"it comes as {type(image).__name__}, not as an image")
        return image


def list_torchvision(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """``torchvision:NAME``: a class of ``torchvision.datasets`` with one image and one label per row.

    ``torchvision:NAME/VARIANT`` where it comes in several (``VARIANTS``): ``torchvision:EMNIST/letters``.
    ``dataset.root`` is where its files lie, or go with ``dataset.download``. Images are stored as PNG, as torchvision
    decodes them. Classes that unpickle files are refused.
    """
    import torchvision.datasets as library  # slow, and needed here alone

    name, variant = _variant(entry(settings.name).options["name"])
    kind = getattr(library, name, None) if name in library.__all__ else None
    if kind is None or not hasattr(kind, "__getitem__"):
        raise DataError(f"dataset.name: torchvision has no dataset {name!r}{nearest(name, library.__all__)}")
    if any("pickle" in inspect.getsource(inspect.getmodule(base) or base) for base in _own_bases(kind)):
        raise DataError(
            f"torchvision:{name} loads pickles, which can run code: it is refused. CIFAR is here by the names cifar10 "
            f"and cifar100; others can be written to an image folder or Parquet"
        )
    root = root_of(settings, base)
    fixed = variant | ({"download": settings.download} if "download" in _accepted(kind) else {})
    made = {split: _construct(kind, name, root, split, fixed) for split in _SPLITS}
    found = {split: dataset for split, dataset in made.items() if dataset is not None}
    if "train" not in found:
        raise DataError(f"torchvision:{name} has no training split that can be asked for")
    labels = {split: _labels(dataset, name) for split, dataset in found.items()}
    names = _class_names(found["train"], int(max((own.max() for own in labels.values() if len(own)), default=-1)) + 1)
    if names[:1] == ["N/A"] and all(
        own.min() > 0 for own in labels.values() if len(own)
    ):  # EMNIST counts letters from 1
        names, labels = names[1:], {split: own - 1 for split, own in labels.items()}
    listings: dict[str, Listing] = {
        split: Images(_Decoded(dataset), labels[split], split, len(names)) for split, dataset in found.items()
    }
    if "test" not in listings and "validation" in listings:
        listings["test"] = listings.pop("validation")
    return Source(settings.name, names_of(settings, names), listings)


def _own_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("torchvision.datasets.")]


def _accepted(kind: type) -> set[str]:
    """Names of the arguments that a class takes, those it hands on to its bases too."""
    names: set[str] = set()
    for base in _own_bases(kind):
        parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of this class itself
        names |= parameters.keys()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _variant(name: str) -> tuple[str, dict[str, Any]]:
    """``NAME/VARIANT`` as the class's name and the argument that chooses the variant."""
    name, slash, chosen = name.partition("/")
    if name not in VARIANTS:
        if slash:
            raise DataError(f"dataset.name: torchvision:{name} comes in one variant: leave out /{chosen}")
        return name, {}
    argument, known = VARIANTS[name]
    if slash and chosen not in known:
        listed = ", ".join(f"torchvision:{name}/{word}" for word in known)
        raise DataError(f"dataset.name: torchvision:{name} has no variant {chosen!r}; there are {listed}")
    if not slash:
        chosen = next(iter(known))
        log.info("torchvision:%s: the variant %s is taken of %s", name, chosen, ", ".join(known))
    return name, {argument: known[chosen]}


def _construct(kind: Any, name: str, root: Path, split: str, fixed: dict[str, Any]) -> Any | None:
    """The dataset's split, or ``None`` where it has no such split."""
    accepted = _accepted(kind) - fixed.keys()
    if "train" in accepted:
        if split == "validation":
            return None
        options: Sequence[dict[str, Any]] = [{"train": split == "train"}]
    elif "split" in accepted:
        options = [{"split": word} for word in (*_SPLITS[split], *_WHOLE_TRAINING.get(split, ()))]
    else:
        options = [{}] if split == "train" else []
    for option in options:
        try:
            return kind(root, **fixed, **option)
        except ValueError:  # torchvision's word for a split that is not
            continue
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            said = said.replace("download=True", "dataset.download: true")  # as it is written here
            raise DataError(f"torchvision:{name} cannot be read from {root} ({said})") from error
    return None


def _class_names(dataset: Any, classes: int) -> list[str]:
    """Names of ``classes`` classes under whichever attribute the dataset has them, else their numbers."""
    for attribute in ("classes", "categories", "all_categories", "_characters", "class_to_idx"):
        held = getattr(dataset, attribute, None)
        if isinstance(held, dict):
            held = sorted(held, key=held.__getitem__)
        if isinstance(held, (list, tuple)) and len(held) >= classes > 0:
            return [" or ".join(c) if isinstance(c, tuple) else str(c) for c in held]
    return [str(number) for number in range(classes)]


def _labels(dataset: Any, name: str) -> Labels:
    for attribute in ("targets", "_labels", "labels", "y"):
        held = getattr(dataset, attribute, None)
        if held is not None and not callable(held) and len(held) == len(dataset):
            break
    else:
        held = [dataset[row][1] for row in range(len(dataset))]
    labels = np.asarray(held)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"torchvision:{name} has labels of shape {labels.shape}, {labels.dtype}: one class per image is needed"
        )
    return labels.astype(np.int64)
