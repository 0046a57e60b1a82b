"""Parquet files in Hugging Face layout: a column of images, a column of integer labels, class names in the metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ...config.dataset import DatasetSettings
from ...errors import DataError, first_few
from ..classes import number_gaps, number_words, renumbered, unlabelled
from ..listing import BadImages, Listing, Source, check_class_names, max_file_bytes, nearest
from .parquet_columns import File, inspect
from .parquet_rows import ParquetRows

__all__ = ["expand", "list_parquet", "list_tables"]


def expand(patterns: str | list[str], base: Path, setting: str, suffix: str = "parquet") -> list[Path]:
    """The files that paths and globs below ``base`` stand for, sorted within each glob, each once.

    Raises:
        DataError: nothing matches, or a folder is named.
    """
    files: dict[Path, Path] = {}
    items = [patterns] if isinstance(patterns, str) else patterns
    if not items:
        raise DataError(f"{setting} is an empty list: name at least one file, or null")
    for item in items:
        path = base / Path(item).expanduser()
        if "://" in item:
            raise DataError(f"{setting}: {item} is an address: download the file and name its path")
        if path.is_dir():
            raise DataError(
                f"{setting}: {path} is a folder: name the files in it, e.g. {item.rstrip('/')}/train-*.{suffix}"
            )
        found = [path] if path.is_file() else _glob(path, setting) if any(c in item for c in "*?[") else []
        if not found:
            near = nearest(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
            raise DataError(f"{setting}: no file matches {path}{near}")
        for match in found:
            files.setdefault(match.resolve(), match)
    return list(files.values())


def _glob(path: Path, setting: str) -> list[Path]:
    root = Path(path.anchor)
    try:
        return sorted(p for p in root.glob(str(path.relative_to(root))) if p.is_file())
    except (ValueError, NotImplementedError) as error:
        raise DataError(f"{setting}: {path} is not a glob ({error})") from error


def list_parquet(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """Read schemas and labels of every file; images stay where they are (``bad`` is not used).

    Raises:
        DataError: files that are missing, damaged or the same in two splits; columns that are missing or of the wrong
            type; labels that are null, negative or beyond the class names.
    """
    given = {name: getattr(settings, name) for name in ("train", "validation", "test")}
    paths = {name: expand(value, base, f"dataset.{name}") for name, value in given.items() if value is not None}
    return list_tables(paths, settings)


def list_tables(paths: dict[str, list[Path]], settings: DatasetSettings) -> Source:
    """``list_parquet`` of files that exist: split -> its files."""
    if settings.duplicates != "allow":
        _refuse_shared(paths)
    files = {name: [inspect(path, settings) for path in listed] for name, listed in paths.items()}
    files, names = _numbered(files, settings)
    for split in files:
        _check_labels(files[split], split, len(names), settings)
    max_bytes = max_file_bytes(settings.max_pixels)
    listings: dict[str, Listing] = {
        split: ParquetRows(listed, split, settings.image_column, max_bytes) for split, listed in files.items()
    }
    named = settings.class_names or any(
        file.words is not None or file.class_names for listed in files.values() for file in listed
    )
    return Source("parquet", names, listings, unnamed=not named)


def _refuse_shared(paths: dict[str, list[Path]]) -> None:
    owner: dict[Path, str] = {}
    for split, listed in paths.items():
        for path in listed:
            other = owner.setdefault(path.resolve(), split)
            if other != split:
                raise DataError(
                    f"{path} is listed in both dataset.{other} and dataset.{split}: a file belongs to one split; "
                    f"narrow the globs"
                )


def _numbered(files: dict[str, list[File]], settings: DatasetSettings) -> tuple[dict[str, list[File]], list[str]]:
    """The files with labels from 0 on wherever these are words or leave numbers out, and the classes' names."""
    every = [file for listed in files.values() for file in listed]
    worded = [file for file in every if file.words is not None]
    column = settings.label_column
    named = _names_in_metadata(files) if settings.class_names is None else None
    if worded:
        other = next((file for file in every if file.words is None), None)
        if other is not None:
            raise DataError(
                f"column {column!r} holds words in {worded[0].path} and integers in {other.path}: write it alike"
            )
        words = {split: [(str(file.path), file.words or []) for file in listed] for split, listed in files.items()}
        names, labels = number_words(words, settings.class_names or named, column)
        changed = {
            split: [replace(file, labels=own) for file, own in zip(listed, labels[split], strict=True)]
            for split, listed in files.items()
        }
        return changed, names
    wanted = settings.class_names or named
    numbers = number_gaps([file.labels for file in files["train"]], settings.class_names, column) if not named else None
    if numbers is None:
        if wanted is not None:
            return files, check_class_names(wanted, "dataset.class_names")
        present = np.unique(np.concatenate([file.labels for file in files["train"]]))
        return files, [str(label) for label in range(int((present >= 0).sum()))]
    changed = {
        split: [replace(file, labels=renumbered(file.labels, numbers, str(file.path), column)) for file in listed]
        for split, listed in files.items()
    }
    return changed, list(wanted) if wanted is not None else [str(label) for label in numbers]


def _names_in_metadata(files: dict[str, list[File]]) -> list[str] | None:
    named = [(file.path, file.class_names) for listed in files.values() for file in listed if file.class_names]
    for path, names in named[1:]:
        if names != named[0][1]:
            raise DataError(
                f"{path} and {named[0][0]} give other class names ({first_few(names)} and {first_few(named[0][1])}), "
                f"so that their labels mean different things: write both with the same names"
            )
    return list(named[0][1]) if named else None


def _check_labels(files: list[File], split: str, classes: int, settings: DatasetSettings) -> None:
    for file in files:
        wrong = np.flatnonzero((file.labels < 0) | (file.labels >= classes))
        if not len(wrong):
            continue
        label = int(file.labels[wrong[0]])
        raise DataError(
            f"{file.path}, row {wrong[0]} (counted from 0): column {settings.label_column!r} is {label}, but 0 to "
            f"{classes - 1} is allowed, as dataset.{split} has {classes} classes{unlabelled(label)}"
        )
