"""CIFAR-10 and CIFAR-100: the binary version, packed or not, or the hub's Parquet files. The pickled one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...catalogue.datasets import entry
from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..listing import BadImages, Images, Listing, Source
from .archives import read_members
from .parquet import list_tables
from .places import names_of, root_of, unlike

__all__ = ["list_cifar"]

_FILES = {
    10: {"train": [f"data_batch_{k}.bin" for k in range(1, 6)], "test": ["test_batch.bin"]},
    100: {"train": ["train.bin"], "test": ["test.bin"]},
}
_NAMES = {10: "batches.meta.txt", 100: "fine_label_names.txt"}
_COLUMN = {10: "label", 100: "fine_label"}
_PIXELS = 3 * 32 * 32


def list_cifar(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """The official training and test splits; CIFAR-100 by its fine labels (``bad`` is not used)."""
    root = root_of(settings, base)
    known = entry(settings.name)
    classes, folder, archive = known.classes, known.options["folder"], f"{known.options['archive']}.tar.gz"
    wanted = [_NAMES[classes], *(name for names in _FILES[classes].values() for name in names)]
    unpacked = next((f for f in (root / folder, root) if (f / wanted[0]).is_file()), None)
    if unpacked is not None:
        return _binary(settings, classes, {name: _read(unpacked / name) for name in wanted}, str(unpacked))
    if (root / archive).is_file():
        return _binary(settings, classes, read_members(root / archive, wanted), str(root / archive))
    if (tables := _tables(root)) is not None:
        columns = {"image_column": "img", "label_column": _COLUMN[classes]}
        found = list_tables(tables, settings.model_copy(update=columns))
        return Source(settings.name, found.class_names, found.listings)
    pickles = [name for name in ("cifar-10-batches-py", "cifar-100-python") if (root / name).exists()]
    if pickles:
        raise DataError(
            f"{root / pickles[0]} holds pickles, which can run code when they are loaded: they are refused. Download "
            f"the binary version ({archive}) instead"
        )
    raise unlike(settings, root, (f"{folder}/ with {wanted[0]}", archive, "train-*.parquet and test-*.parquet"))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({(error.strerror or '').lower()}): unpack the archive again"
        ) from error


def _tables(root: Path) -> dict[str, list[Path]] | None:
    for folder in (root, *(root / name for name in ("plain_text", "data", "cifar100"))):
        found = {split: sorted(folder.glob(f"{split}-*.parquet")) for split in ("train", "test")}
        if all(found.values()):
            return found
    return None


def _binary(settings: DatasetSettings, classes: int, files: dict[str, bytes], where: str) -> Source:
    """Rows of label bytes (CIFAR-100: coarse, then fine) and 3,072 pixels, channel by channel."""
    labels_wide = 1 if classes == 10 else 2
    names = [line.strip() for line in files[_NAMES[classes]].decode("ascii", "replace").splitlines() if line.strip()]
    if len(names) != classes:
        raise DataError(f"{where}, {_NAMES[classes]}: {len(names)} class names instead of {classes}")
    listings: dict[str, Listing] = {}
    for split, members in _FILES[classes].items():
        blocks = []
        for name in members:
            raw = np.frombuffer(files[name], np.uint8)
            if not len(raw) or len(raw) % (labels_wide + _PIXELS):
                raise DataError(
                    f"{where}, {name}: {len(raw)} bytes are no whole number of images of {labels_wide + _PIXELS} "
                    f"bytes: it is damaged or cut short, download it again"
                )
            blocks.append(raw.reshape(-1, labels_wide + _PIXELS))
        rows = np.concatenate(blocks)
        pixels = np.ascontiguousarray(rows[:, labels_wide:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        listings[split] = Images(pixels, rows[:, labels_wide - 1], split, classes)
    return Source(settings.name, names_of(settings, names), listings)
