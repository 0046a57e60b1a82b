"""Any source of labelled images -> checked indexes of the three splits."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..config import DatasetSettings
from ..errors import DataError
from ..files import canonical_json, explain_os_errors, remove, sha256_bytes, sync_folder
from ..layout import SPLITS
from .decode import Undecodable, decode
from .digits import list_digits
from .folder import list_folder
from .index import IndexWriter
from .listing import BadImages, Images, Listing, Source, check_class_names
from .parquet import list_parquet
from .split import limit, stratify

__all__ = ["SOURCES", "build_index", "index_arrays"]

log = logging.getLogger(__name__)

SOURCES: dict[str, Callable[[DatasetSettings, Path, BadImages], Source]] = {
    "digits": list_digits,
    "parquet": list_parquet,
    "folder": list_folder,
}
"""Every source of images; a new one is a function here and its name in ``DatasetSettings.name``."""

_THREADS = 4
_BATCH = 64


def build_index(settings: DatasetSettings, seed: int, out: Path, base: Path = Path(".")) -> dict[str, Path]:
    """Check every chosen image by decoding it, and write the indexes.

    Splits that the settings do not name are split off the training images, stratified (``split.stratify``); then
    ``max_per_class`` draws at random within each class; then images are read, decoded and compared. Images left out
    at that point (``bad_images: skip``, ``duplicates: drop``) are not replaced by others. Duplicates are files of
    equal bytes; the same picture encoded twice is not noticed.

    Args:
        seed: of the splits and draws.
        out: folder that gets ``train.parquet``, ``validation.parquet``, ``test.parquet`` and ``summary.json``
            (images per split and class, what was skipped and why, duplicates). They appear together, when whole.
        base: what the paths of the settings are relative to.

    Returns:
        split -> its index.

    Raises:
        DataError: see the sources, ``stratify`` and ``decode_image``; besides, fewer than two classes, a class or
            split left without images, and duplicates where they are errors.
        ResourceError: ``out`` cannot be written.
    """
    bad = BadImages(settings.bad_images == "skip")
    try:
        source = SOURCES[settings.name](settings, base, bad)
    except OSError as error:  # a parent folder that may not be entered, say
        raise DataError(f"the images cannot be read: {error}") from error
    return _write(source, settings, seed, out, bad)


def index_arrays(
    splits: Mapping[str, tuple[NDArray[np.uint8] | Sequence[Image.Image], NDArray[np.integer[Any]]]],
    class_names: Sequence[str],
    out: Path | str,
    *,
    name: str = "arrays",
    seed: int = 0,
    settings: DatasetSettings | None = None,
) -> dict[str, Path]:
    """``build_index`` for images in memory, with the same checks.

    Args:
        splits: split -> ``(images, labels)``; images ``(n, h, w, 3)`` or ``(n, h, w)`` uint8, or a sequence of PIL
            images of any sizes; labels ``(n,)`` integers in ``[0, C)``. ``"train"`` must be there; the others are
            split off it where they are missing.
        class_names: ``C`` names.
        name: what the dataset is called in results.
        settings: fractions, limits, and what to do about bad images and duplicates; its sources are not used.
    """
    if "train" not in splits or set(splits) - set(SPLITS):
        raise DataError(f"splits must hold train, and may hold validation and test; got {', '.join(splits) or 'none'}")
    settings = settings or DatasetSettings()
    names = check_class_names(class_names, "class_names")
    _refuse_single_class(names)
    listings: dict[str, Listing] = {
        split: Images(images, labels, split, len(names)) for split, (images, labels) in splits.items()
    }
    bad = BadImages(settings.bad_images == "skip")
    return _write(Source(settings.title or name, names, listings), settings, seed, Path(out), bad)


def _write(source: Source, settings: DatasetSettings, seed: int, out: Path, bad: BadImages) -> dict[str, Path]:
    _check_classes(source)
    parts = _choose(source, settings, seed)
    duplicates = _Duplicates(settings.duplicates)
    counts: dict[str, dict[str, int]] = {}
    with explain_os_errors("write the index to", out), _staging(out) as staging:
        for split in reversed(SPLITS):  # so that earlier splits know what the later ones hold
            given, rows = parts[split]
            metadata = {
                "class_names": source.class_names,
                "dataset": source.name,
                "max_pixels": settings.max_pixels,
                "source": {"split": given, "images": len(source.listings[given].labels)},
            }
            with IndexWriter(staging / f"{split}.parquet", split, metadata) as writer:
                labels = _fill(writer, split, source.listings[given], rows, settings.max_pixels, bad, duplicates)
            duplicates.close(split)
            counts[split] = _count(labels, source, split, bad)
        summary = {
            "dataset": source.name,
            "class_names": source.class_names,
            "splits": {split: {"images": sum(c.values()), "classes": c} for split, c in counts.items()},
            "skipped": sorted(bad.skipped, key=lambda item: (SPLITS.index(item["split"]), item["id"])),
            "duplicates": duplicates.summary(),
        }
        (staging / "summary.json").write_text(canonical_json(summary), encoding="utf-8")
        _publish(staging, out)
    return {split: out / f"{split}.parquet" for split in SPLITS}


def _refuse_single_class(names: list[str]) -> None:
    if len(names) < 2:
        told = f"one class only ({names[0]})" if names else "no classes"
        raise DataError(f"the dataset has {told}: a probe needs at least two")


def _check_classes(source: Source) -> None:
    _refuse_single_class(source.class_names)
    present = np.bincount(source.listings["train"].labels, minlength=len(source.class_names))
    _refuse_empty_classes(present, source.class_names, "among the training images")


def _refuse_empty_classes(counts: NDArray[np.int64], names: list[str], where: str) -> None:
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        told = ", ".join(f"{names[label]!r} (label {label})" for label in empty[:5])
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no image {where}: {told}"
            f"{', ...' if len(empty) > 5 else ''}. Add images, or remove the class and renumber the labels "
            f"without a gap"
        )


def _choose(source: Source, settings: DatasetSettings, seed: int) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """split -> (the given split it is taken from, its rows there)."""
    fractions = {"validation": settings.validation_fraction, "test": settings.test_fraction}
    shares = {split: share for split, share in fractions.items() if split not in source.listings}
    parts = {split: (split, np.arange(len(listing.labels))) for split, listing in source.listings.items()}
    if shares:
        split_off = stratify(source.listings["train"].labels, shares, seed, source.class_names)
        parts.update({split: ("train", rows) for split, rows in split_off.items()})
    return {
        split: (given, limit(source.listings[given].labels, rows, getattr(settings.max_per_class, split), seed, split))
        for split, (given, rows) in parts.items()
    }


@dataclass(frozen=True)
class _Checked:
    data: bytes
    width: int
    height: int
    sha256: str


def _check(data: bytes | Undecodable, max_pixels: int) -> _Checked | Undecodable:
    if isinstance(data, Undecodable):
        return data
    try:
        image = decode(data, max_pixels)
    except Undecodable as problem:
        return problem
    return _Checked(data, image.width, image.height, sha256_bytes(data))


def _fill(
    writer: IndexWriter,
    split: str,
    listing: Listing,
    rows: NDArray[np.int64],
    max_pixels: int,
    bad: BadImages,
    duplicates: _Duplicates,
) -> list[int]:
    """Write the usable images of ``rows``, in order; returns their labels. Decoding is spread over threads."""
    labels = []
    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(rows), desc=f"index {split}", disable=None) as bar:
        results = _mapped(pool, listing.read(rows.tolist()), max_pixels)
        for row, result in zip(rows.tolist(), results, strict=True):
            bar.update()
            if isinstance(result, Undecodable):
                bad.add(split, listing.name(row), listing.where(row), result)
            elif duplicates.keep(result.sha256, split, listing.name(row)):
                label = int(listing.labels[row])
                writer.add(listing.name(row), result.data, label, result.width, result.height, result.sha256)
                labels.append(label)
    return labels


def _mapped(
    pool: ThreadPoolExecutor, items: Iterator[bytes | Undecodable], max_pixels: int
) -> Iterator[_Checked | Undecodable]:
    """``_check`` of every item, in order, with few of them in memory."""
    while batch := list(islice(items, _BATCH)):
        yield from pool.map(lambda data: _check(data, max_pixels), batch)


@dataclass
class _Duplicates:
    """Equal bytes across splits, met in the order test, validation, train."""

    policy: str
    seen: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    across: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    within: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    examples: list[str] = field(default_factory=list)

    def keep(self, sha256: str, split: str, name: str) -> bool:
        """Note one image; whether it stays in its split."""
        other, other_name = self.seen.setdefault(bytes.fromhex(sha256), (split, name))
        if other == split:
            self.within[split] += other_name != name
            return True
        self.across[split] += 1
        if len(self.examples) < 3:
            self.examples.append(f"{name} is {other_name} of {other}")
        return self.policy != "drop"

    def close(self, split: str) -> None:
        """Raises ``DataError`` when the split shares images with a later one and must not."""
        if self.across[split] and self.policy == "error":
            raise DataError(
                f"{self.across[split]} of the images for {split} are also in a later split "
                f"({'; '.join(self.examples)}), so that scores would be too good. "
                f"Remove them, or set dataset.duplicates: drop to leave them out of "
                f"{split}, or allow to keep them in both"
            )

    def summary(self) -> dict[str, Any]:
        """Counts per split: shared with a later split (dropped or kept, by the policy), and repeated within it."""
        return {"policy": self.policy, "across_splits": self.across, "within_split": self.within}


def _count(labels: list[int], source: Source, split: str, bad: BadImages) -> dict[str, int]:
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(source.class_names))
    if split == "train":
        left_out = f"{len(bad.skipped)} bad images were skipped and duplicates left out"
        _refuse_empty_classes(counts, source.class_names, f"to train on after {left_out}")
    elif not labels:
        raise DataError(f"dataset.{split} has no usable image: {len(bad.skipped)} were skipped as bad")
    elif len(empty := np.flatnonzero(counts == 0)):
        log.warning("%s lacks images of some classes (%d), e.g. %s", split, len(empty), source.class_names[empty[0]])
    return dict(zip(source.class_names, counts.tolist(), strict=True))


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A private folder beside ``out``, gone afterwards; those of killed runs are removed too."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".clpdd-tmp-*-{out.name}"):
        owner = leftover.name.removeprefix(".clpdd-tmp-").split("-")[0]
        if owner.isdigit() and (int(owner) == os.getpid() or not _alive(int(owner))):
            remove(leftover)
    staging = out.parent / f".clpdd-tmp-{os.getpid()}-{out.name}"
    staging.mkdir()
    try:
        yield staging
    finally:
        remove(staging)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _publish(staging: Path, out: Path) -> None:
    """Move the finished files into place. Old ones go first: a run killed here leaves gaps, never a mixture."""
    names: Iterable[str] = ("summary.json", *(f"{split}.parquet" for split in reversed(SPLITS)))
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        remove(out / name)
    for name in reversed(list(names)):
        os.replace(staging / name, out / name)
    sync_folder(out)
