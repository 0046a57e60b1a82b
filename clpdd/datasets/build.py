"""Any source of labelled images -> checked indexes of the three splits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..config.dataset import DatasetSettings
from ..errors import DataError
from ..storage.files import canonical_json, explain_os_errors, flush, remove, sha256_bytes, staged
from ..storage.layout import SPLITS
from .check import check
from .classes import check_classes, refuse_empty_classes, refuse_single_class
from .decode import Undecodable
from .duplicates import Duplicates
from .index import IndexWriter
from .listing import BadImages, File, Files, Images, Labels, Listing, Source, check_class_names
from .sources.loading import reader_of
from .split import limit, stratify
from .telling import left_out_in_words

__all__ = ["Enough", "build_index", "choose", "index_arrays", "open_source", "write_index"]

log = logging.getLogger(__name__)

Enough = Callable[[Sequence[str], Sequence[int]], None]
"""Takes the names of the classes and their numbers of training images; raises where these are too few."""

_REFER_ABOVE = 50_000  # files: an index that copied more would be the dataset once again


def build_index(
    settings: DatasetSettings,
    seed: int,
    out: Path,
    base: Path = Path("."),
    partial: Path | None = None,
    enough: Enough | None = None,
) -> dict[str, Path]:
    """Check every chosen image by decoding it, and write the indexes: ``open_source``, then ``write_index``.

    Args:
        seed: of the splits and draws.
        out: folder that gets the files.
        base: what the paths of the settings are relative to.
        partial: folder in which a killed run finds what it has checked; removed when the indexes are whole.
        enough: see ``write_index``.
    """
    bad = BadImages(settings.bad_images == "skip")
    written = write_index(open_source(settings, base, bad), settings, seed, out, bad, partial, enough)
    if partial is not None:
        remove(partial)
    return written


def open_source(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """List the images of a dataset by the reader of its layout. Raises ``DataError``: see the readers."""
    try:
        return reader_of(settings.name)(settings, base, bad)
    except OSError as error:  # a parent folder that may not be entered, say
        raise DataError(f"the images cannot be read: {error}") from error


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
            images or arrays of any sizes; labels ``(n,)`` integers in ``[0, C)``. ``"train"`` must be there; the
            others are split off it where they are missing.
        class_names: ``C`` names.
        name: what the dataset is called in results.
        settings: fractions, limits, and what to do about bad images and duplicates; its sources are not used.
    """
    if "train" not in splits or set(splits) - set(SPLITS):
        raise DataError(f"splits must hold train, and may hold validation and test; got {', '.join(splits) or 'none'}")
    for split, given in splits.items():
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise DataError(f"{split} must be a pair (images, labels), not {type(given).__name__}")
    settings = settings or DatasetSettings()
    names = check_class_names(class_names, "class_names")
    refuse_single_class(names)
    listings: dict[str, Listing] = {
        split: Images(images, labels, split, len(names)) for split, (images, labels) in splits.items()
    }
    bad = BadImages(settings.bad_images == "skip")
    return write_index(Source(settings.title or name, names, listings), settings, seed, Path(out), bad)


def write_index(
    source: Source,
    settings: DatasetSettings,
    seed: int,
    out: Path,
    bad: BadImages,
    partial: Path | None = None,
    enough: Enough | None = None,
    home: Path | None = None,
) -> dict[str, Path]:
    """Check, split and write the images of a source.

    Splits that the source does not give are split off the training images, stratified (``split.stratify``); then
    ``max_per_class`` draws at random within each class; then images are read, decoded and compared. Images left out
    at that point (``bad_images: skip``, ``duplicates: drop``) are not replaced by others. Duplicates are files of
    equal bytes; the same picture encoded twice is not noticed.

    Args:
        seed: of the splits and draws.
        out: folder that gets ``train.parquet``, ``validation.parquet``, ``test.parquet`` and ``summary.json``
            (images per split and class, what was skipped and why, duplicates). They appear together, when whole.
        bad: what the source has left out already.
        partial: folder in which a killed run finds what it has checked.
        enough: called with the names of the classes and their numbers of training images, before any is read and
            again without those that are left out; it raises where these are too few.
        home: the folder that the indexes will lie in, which files are named relative to; ``None``: ``out``.

    Returns:
        split -> its index.

    Raises:
        DataError: see ``stratify`` and ``decode_image``; besides, fewer than two classes, a class or split left
            without images, and duplicates where they are errors.
        ResourceError: ``out`` cannot be written.
    """
    source = check_classes(source, settings)
    parts = choose(source, settings, seed)
    if enough is not None:
        given, rows = parts["train"]
        chosen = source.listings[given].labels[rows]
        enough(source.class_names, np.bincount(chosen, minlength=len(source.class_names)).tolist())
    duplicates = Duplicates(settings.duplicates)
    counts: dict[str, dict[str, int]] = {}
    with explain_os_errors("write the index to", out), staged(out) as staging:
        staging.mkdir()
        for split in reversed(SPLITS):  # so that earlier splits know what the later ones hold
            given, rows = parts[split]
            metadata = {
                "class_names": source.class_names,
                "dataset": settings.title or source.name,
                "max_pixels": settings.max_pixels,
                "source": {"split": given, "images": len(source.listings[given].labels)},
            }
            listing = source.listings[given]
            rows, digests, sizes = _usable(split, listing, rows, settings, bad, duplicates, partial)
            refer = _refers(listing, settings)
            with IndexWriter(staging / f"{split}.parquet", split, metadata, refer, home or out) as writer:
                _fill(writer, listing, rows, digests, sizes, refer)
            counts[split] = _count(listing.labels[rows].tolist(), source, split, bad)
        if enough is not None:
            enough(source.class_names, list(counts["train"].values()))
        summary: dict[str, Any] = {
            "dataset": settings.title or source.name,
            "class_names": source.class_names,
            "splits": {split: {"images": sum(c.values()), "classes": c} for split, c in counts.items()},
            "skipped": sorted(bad.skipped, key=lambda item: (SPLITS.index(item["split"]), item["id"])),
            "duplicates": duplicates.summary(),
        }
        (staging / "summary.json").write_text(canonical_json(summary), encoding="utf-8")
        _publish(staging, out)
    for line in left_out_in_words(summary, (home or out) / "summary.json"):  # half a dataset must not go without a word
        log.warning("%s", line)
    return {split: out / f"{split}.parquet" for split in SPLITS}


def _refers(listing: Listing, settings: DatasetSettings) -> bool:
    """Whether the index names the files instead of holding them."""
    if settings.store == "paths" and not isinstance(listing, Files):
        raise DataError(
            f"dataset.store is paths, but the images of {settings.name} are no files of their own: set bytes"
        )
    return isinstance(listing, Files) and (
        settings.store == "paths" or (settings.store == "auto" and len(listing.labels) > _REFER_ABOVE)
    )


def choose(source: Source, settings: DatasetSettings, seed: int) -> dict[str, tuple[str, NDArray[np.int64]]]:
    """split -> (the given split it is taken from, its rows there): before any image is read.

    Raises ``DataError``: see ``stratify``.
    """
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


def _usable(
    split: str,
    listing: Listing,
    rows: Labels,
    settings: DatasetSettings,
    bad: BadImages,
    duplicates: Duplicates,
    partial: Path | None,
) -> tuple[Labels, NDArray[np.uint8], NDArray[np.int32]]:
    """The rows that stay in the split, with their digests ``(n, 32)`` and sizes ``(n, 2)``."""
    kept, digests, sizes = [rows[:0]], [np.zeros((0, 32), np.uint8)], [np.zeros((0, 2), np.int32)]
    for start, found in check(listing, rows, settings.max_pixels, split, partial):
        chunk = rows[start : start + len(found.sizes)]
        for position, problem in sorted(found.problems.items()):
            row = int(chunk[position])
            bad.add(split, listing.name(row), listing.where(row), problem)
        sound = np.ones(len(chunk), np.bool_)
        sound[list(found.problems)] = False
        kept.append(chunk[sound])
        digests.append(found.digests[sound])
        sizes.append(found.sizes[sound])
    chosen, marks = np.concatenate(kept), np.concatenate(digests)
    labels = np.asarray(listing.labels)[chosen]
    stays = duplicates.sift(split, marks, labels, lambda position: listing.name(int(chosen[position])))
    return chosen[stays], marks[stays], np.concatenate(sizes)[stays]


def _fill(
    writer: IndexWriter,
    listing: Listing,
    rows: Labels,
    digests: NDArray[np.uint8],
    sizes: NDArray[np.int32],
    refer: bool,
) -> None:
    """Write the rows, in order: with their images, or (``refer``) with the files these lie in."""
    chosen = rows.tolist()
    images: Iterator[bytes | Undecodable | File]
    images = (listing.files[row] for row in chosen) if refer and isinstance(listing, Files) else listing.read(chosen)
    for row, image, digest, (width, height) in zip(chosen, images, digests, sizes.tolist(), strict=True):
        mark = digest.tobytes().hex()
        if isinstance(image, Undecodable) or (isinstance(image, bytes) and sha256_bytes(image) != mark):
            raise DataError(f"{listing.where(row)}: the image changed while it was indexed: run the stage index again")
        group = None if listing.groups is None else listing.groups[row]
        writer.add(listing.name(row), image, int(listing.labels[row]), width, height, mark, group)


def _count(labels: list[int], source: Source, split: str, bad: BadImages) -> dict[str, int]:
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(source.class_names))
    if split == "train":
        left_out = f"{len(bad.skipped)} bad images were skipped and duplicates left out"
        advice = "Repair its images, or add others"
        refuse_empty_classes(counts, source.class_names, f"to train on after {left_out}", advice)
    elif not labels:
        raise DataError(f"dataset.{split} has no usable image: {len(bad.skipped)} were skipped as bad")
    elif len(empty := np.flatnonzero(counts == 0)):
        log.warning("%s lacks images of some classes (%d), e.g. %s", split, len(empty), source.class_names[empty[0]])
    return dict(zip(source.class_names, counts.tolist(), strict=True))


def _publish(staging: Path, out: Path) -> None:
    """Move the finished files into place. Old ones go first: a run killed here leaves gaps, never a mixture."""
    names: Iterable[str] = ("summary.json", *(f"{split}.parquet" for split in reversed(SPLITS)))
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        remove(out / name)
    for name in reversed(list(names)):
        os.replace(staging / name, out / name)
    flush(out)
