"""WebDataset: tar shards in which files of one name are a sample, ``1.jpg`` beside ``1.cls``, read where they lie."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..classes import number_labels
from ..decode import SUFFIXES, Undecodable
from ..listing import BadImages, File, Files, Listing, Source, max_file_bytes, read_file
from .archives import members
from .parquet import expand

__all__ = ["list_webdataset"]

_TEXT_BYTES = 1 << 20  # of a label or of the facts of a sample
_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")  # as WebDataset parts it: at the first dot of the last component
_BRACES = re.compile(r"\{([^{}]*)\}")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass
class _Sample:
    """The files of one name: what follows the dot -> file."""

    shard: Path
    key: str
    files: dict[str, File] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.shard}, sample {self.key}"


@dataclass
class _Rows:
    """What is kept of a shard: images, labels, and where they are there groups and names of classes."""

    images: list[File] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    named: list[Any] = field(default_factory=list)


def list_webdataset(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Shards named by paths, globs and braces (``train-{000..127}.tar``), in that order; samples in the shards' order.

    The image is the file whose ending is one of an image, or ``dataset.image_column``. The label is the text in
    ``.cls``, or in ``.LABEL_COLUMN``, or the field ``dataset.label_column`` of ``.json``: a whole number or a word.
    Where ``.json`` names the class of every label (``class``, as ``clpdd export`` writes it), these are the names.
    Nothing is unpacked.

    Raises:
        DataError: shards that are missing, damaged, compressed or that hold links or names leading out of them; samples
            with an image and no label; labels that mean nothing (``classes.number_labels``).
    """
    given = {split: getattr(settings, split) for split in ("train", "validation", "test")}
    rows: dict[str, list[tuple[Path, _Rows]]] = {}
    for split, value in given.items():
        if value is not None:
            setting = f"dataset.{split}"
            patterns = [one for item in ([value] if isinstance(value, str) else value) for one in _braces(item, base)]
            shards = expand(patterns, base, setting, "tar")
            rows[split] = [(shard, _shard(shard, split, settings, bad)) for shard in shards]
    values = {split: [(str(shard), own.labels) for shard, own in held] for split, held in rows.items()}
    names, labels = number_labels(values, settings.class_names, settings.label_column)
    if settings.class_names is None:
        names = _named(rows, labels, names)
    listings: dict[str, Listing] = {}
    for split, held in rows.items():
        stems = [shard.stem for shard, _ in held]
        prefixes = [s if stems.count(s) == 1 else f"{number}/{s}" for number, s in enumerate(stems)]
        files = [
            File(image.root, image.name, f"{prefix}/", image.offset, image.length)
            for prefix, (_, own) in zip(prefixes, held, strict=True)
            for image in own.images
        ]
        groups = [group for _, own in held for group in own.groups] if settings.group_column is not None else None
        numbers = [label for found in labels[split] for label in found.tolist()]
        _refuse_range(numbers, len(names), split)
        listings[split] = Files(files, numbers, max_file_bytes(settings.max_pixels), groups)
    return Source("webdataset", names, listings)


def _braces(pattern: str, base: Path) -> Iterator[str]:
    """``a-{000..002}.tar`` and ``{a,b}.tar`` as the shells expand them; a name that is there as it stands stays."""
    found = _BRACES.search(pattern)
    if found is None or (base / Path(pattern).expanduser()).exists():
        yield pattern
        return
    low, dots, high = found[1].partition("..")
    if dots and low.isdigit() and high.isdigit():
        width = len(low) if low.startswith("0") else 0
        words = [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]
    else:
        words = found[1].split(",")
    for word in itertools.islice(words, 1_000_000):
        yield from _braces(pattern[: found.start()] + word + pattern[found.end() :], base)


def _shard(shard: Path, split: str, settings: DatasetSettings, bad: BadImages) -> _Rows:
    with open(shard, "rb") as file:
        if file.read(6).startswith(_COMPRESSED):
            raise DataError(
                f"dataset.{split}: {shard} is compressed, and images are read where they lie: unpack it to .tar"
            )
    rows = _Rows()
    for sample in _samples(shard):
        image = _image(sample, settings)
        label = _label(sample, settings)
        if image is None and label is None:
            continue  # a file that belongs to no sample
        if label is None:
            raise DataError(
                f"dataset.{split}: {sample} has no label: neither .cls nor .{settings.label_column}, nor a field "
                f"{settings.label_column!r} in .json (dataset.label_column); it has .{', .'.join(sample.files)}"
            )
        if image is None:
            held = f"the files of the sample are .{', .'.join(sample.files)}"
            bad.add(split, f"{shard.stem}/{sample.key}", str(sample), Undecodable(f"is not there: {held}"))
            continue
        facts = _facts(sample)
        rows.images.append(image)
        rows.labels.append(label)
        rows.named.append(facts.get("class"))
        if settings.group_column is not None:
            group = facts.get(settings.group_column)
            if not isinstance(group, (str, int)):
                raise DataError(f"dataset.{split}: {sample} has no group {settings.group_column!r} in .json")
            rows.groups.append(str(group))
    return rows


def _samples(shard: Path) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    for file in members(shard):
        parts = _NAME.fullmatch(file.name)
        if parts is None:
            continue
        key, ending = parts[1], parts[2].lower()
        sample = samples.setdefault(key, _Sample(shard, key))
        if ending in sample.files:
            raise DataError(f"{shard} holds {file.name!r} twice: a sample has one file of an ending")
        sample.files[ending] = file
    return list(samples.values())


def _image(sample: _Sample, settings: DatasetSettings) -> File | None:
    if settings.image_column.lower() in sample.files:
        return sample.files[settings.image_column.lower()]
    found = [ending for ending in sample.files if f".{ending}" in SUFFIXES]
    if len(found) > 1:
        raise DataError(f"{sample} has several images, .{', .'.join(found)}: say which in dataset.image_column")
    return sample.files[found[0]] if found else None


def _label(sample: _Sample, settings: DatasetSettings) -> int | str | bool | float | None:
    column = settings.label_column
    for ending in (column.lower(), *(["cls"] if column == "label" else [])):
        if ending in sample.files:
            text = _text(sample, ending).strip()
            if not text:
                raise DataError(f"{sample}: .{ending} is empty, but holds the label")
            return int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text
    value = _facts(sample).get(column)
    return value if isinstance(value, (int, str, bool, float)) else None


def _facts(sample: _Sample) -> dict[str, Any]:
    """What ``.json`` says; nothing where there is none."""
    if "json" not in sample.files:
        return {}
    try:
        facts = json.loads(_text(sample, "json"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{sample}: .json cannot be read ({error})") from error
    return facts if isinstance(facts, dict) else {}


def _text(sample: _Sample, ending: str) -> str:
    file = sample.files[ending]
    if file.length > _TEXT_BYTES:
        raise DataError(f"{sample}: .{ending} claims {file.length} bytes, more than a label takes: that is refused")
    try:
        return read_file(sample.shard, _TEXT_BYTES, file.offset, file.length).decode()
    except (Undecodable, UnicodeDecodeError) as error:
        raise DataError(f"{sample}: .{ending} cannot be read as UTF-8 text ({error})") from error


def _named(rows: dict[str, list[tuple[Path, _Rows]]], labels: dict[str, Any], names: list[str]) -> list[str]:
    """Names that the samples themselves give the labels: one for each, and no two the same; else ``names``."""
    given: dict[int, set[Any]] = {}
    for split, held in rows.items():
        for (_, own), found in zip(held, labels[split], strict=True):
            for label, name in zip(found.tolist(), own.named, strict=True):
                given.setdefault(label, set()).add(name if isinstance(name, str) and name.strip() else None)
    told = [given.get(label, {None}) for label in range(len(names))]
    if any(len(one) != 1 or None in one for one in told):
        return names
    found_names = [next(iter(one)) for one in told]
    return found_names if len(set(found_names)) == len(found_names) else names


def _refuse_range(numbers: list[int], classes: int, split: str) -> None:
    wrong = next((label for label in numbers if not 0 <= label < classes), None)
    if wrong is not None:
        raise DataError(f"dataset.{split} has the label {wrong}, but 0 to {classes - 1} is allowed")
