"""Datasets by the name that a library knows them by: Hugging Face ``datasets`` and torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...catalogue.datasets import entry
from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..decode import Undecodable
from ..listing import BadImages, Images, Labels, Listing, Source, nearest
from .places import names_of, root_of

__all__ = ["list_hub", "list_torchvision"]

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
    local = (base / given).is_dir()
    path = str(base / given) if local else "/".join([owner, *parts[:1]])
    configuration = None if local or len(parts) < 2 else "/".join(parts[1:])
    cache = str(base / Path(settings.root).expanduser()) if settings.root else None
    try:
        found = datasets.load_dataset(path, configuration, cache_dir=cache)
    except Exception as error:  # the library raises a hundred kinds
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"dataset.name: {settings.name} cannot be had ({said})") from error
    listings: dict[str, Listing] = {}
    names: list[str] = []
    for split, table in found.items():
        own = next((ours for ours, theirs in _SPLITS.items() if split in theirs), None)
        if own is None:
            continue
        table, names = _columns(datasets, table, settings, split)
        labels = np.asarray(table[settings.label_column], np.int64)
        if own == "test" and len(labels) and labels.max() < 0:
            continue  # published without labels: validation takes its place below
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
            raise DataError(f"{settings.name}, split {split}: labels must be 0 to {len(names) - 1}")
        groups = None if settings.group_column is None else [str(g) for g in table[settings.group_column]]
        listings[own] = _HubRows(table, split, settings.image_column, labels, groups)
    if "train" not in listings:
        raise DataError(f"{settings.name} has no training split; its splits: {', '.join(found)}")
    if "test" not in listings and "validation" in listings:
        listings["test"] = listings.pop("validation")  # as everybody does with ImageNet: the labelled one is the test
    return Source(settings.name, names_of(settings, names), listings)


def _columns(datasets: Any, table: Any, settings: DatasetSettings, split: str) -> tuple[Any, list[str]]:
    wanted = [settings.image_column, settings.label_column, settings.group_column]
    for column, setting in zip(wanted, ("image_column", "label_column", "group_column"), strict=True):
        if column is not None and column not in table.features:
            raise DataError(
                f"{settings.name}, split {split}, has no column {column!r} (dataset.{setting}); its columns: "
                f"{', '.join(table.features)}{nearest(column, table.features)}"
            )
    image, label = table.features[settings.image_column], table.features[settings.label_column]
    if not isinstance(image, datasets.Image):
        raise DataError(f"{settings.name}: the column {settings.image_column!r} holds {image}, not images")
    if isinstance(label, datasets.ClassLabel):
        names = list(label.names)
    elif settings.class_names is not None:
        names = list(settings.class_names)
    else:
        raise DataError(
            f"{settings.name}: the column {settings.label_column!r} has no class names: give dataset.class_names"
        )
    return table.cast_column(settings.image_column, datasets.Image(decode=False)), names


# -- torchvision -------------------------------------------------------------------------------------------------------


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

    ``dataset.root`` is where its files lie, or go with ``dataset.download``. Images are stored as PNG, as torchvision
    decodes them. Classes that unpickle files are refused.
    """
    import torchvision.datasets as library  # slow, and needed here alone

    name = entry(settings.name).options["name"]
    kind = getattr(library, name, None) if name in library.__all__ else None
    if kind is None or not hasattr(kind, "__getitem__"):
        raise DataError(f"dataset.name: torchvision has no dataset {name!r}{nearest(name, library.__all__)}")
    if any("pickle" in inspect.getsource(inspect.getmodule(base) or base) for base in _own_bases(kind)):
        raise DataError(
            f"torchvision:{name} loads pickles, which can run code: it is refused. CIFAR is here by the names cifar10 "
            f"and cifar100; others can be written to an image folder or Parquet"
        )
    root = root_of(settings, base)
    made = {split: _construct(kind, name, root, split, settings.download) for split in _SPLITS}
    found = {split: dataset for split, dataset in made.items() if dataset is not None}
    if "train" not in found:
        raise DataError(f"torchvision:{name} has no training split that can be asked for")
    names = _class_names(found["train"])
    listings: dict[str, Listing] = {
        split: Images(_Decoded(dataset), _labels(dataset, name), split, len(names)) for split, dataset in found.items()
    }
    if "test" not in listings and "validation" in listings:
        listings["test"] = listings.pop("validation")
    return Source(settings.name, names_of(settings, names), listings)


def _own_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base.__module__.startswith("torchvision.datasets.")]


def _construct(kind: Any, name: str, root: Path, split: str, download: bool) -> Any | None:
    """The dataset's split, or ``None`` where it has no such split."""
    accepted = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"download": download} if "download" in accepted else {}
    if "train" in accepted:
        if split == "validation":
            return None
        options: Sequence[dict[str, Any]] = [{"train": split == "train"}]
    elif "split" in accepted:
        options = [{"split": word} for word in _SPLITS[split]]
    else:
        options = [{}] if split == "train" else []
    for option in options:
        try:
            return kind(root, **arguments, **option)
        except ValueError:  # torchvision's word for a split that is not
            continue
        except Exception as error:
            said = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"torchvision:{name} cannot be read from {root} ({said})") from error
    return None


def _class_names(dataset: Any) -> list[str]:
    classes = getattr(dataset, "classes", None)
    if classes:
        return [" or ".join(c) if isinstance(c, tuple) else str(c) for c in classes]
    return [str(number) for number in range(int(_labels(dataset, type(dataset).__name__).max()) + 1)]


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
