"""Image folders: a root with one folder per class, ``CLASS/image.png``, nested as deep as one likes."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from ...config.dataset import DatasetSettings
from ...errors import DataError
from ..classes import ordered_names
from ..decode import Undecodable
from ..listing import (
    BadImages,
    File,
    Files,
    Listing,
    Source,
    check_class_names,
    max_file_bytes,
    nearest,
    nearest_path,
    printable,
)
from ..walking import entries, files_below, identity, is_folder, looks_like_image

__all__ = ["list_folder", "list_roots", "scan"]

_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def list_folder(settings: DatasetSettings, base: Path, bad: BadImages) -> Source:
    """List every file below the class folders of each given root, sorted by name; no image is opened.

    Classes are the folders of the training root in sorted order. ``dataset.class_names`` either puts those same
    names in another order, or renames them all in sorted order. Hidden files are passed over, links to files and
    folders followed (``walking``); links that lead nowhere, to themselves or back count as bad images.

    Raises:
        DataError: roots that are missing, nested in each other, or one level too high; class folders that are empty,
            not UTF-8, or unknown to the training root; bad images unless they are skipped.
    """
    given = {split: getattr(settings, split) for split in ("train", "validation", "test")}
    roots = {split: _roots(value, base, f"dataset.{split}") for split, value in given.items() if value is not None}
    _refuse_nested(roots)
    return list_roots(roots, settings, bad)


def list_roots(roots: dict[str, list[Path]], settings: DatasetSettings, bad: BadImages) -> Source:
    """``list_folder`` of roots that exist: split -> its roots."""
    found = {split: scan(paths, split, bad) for split, paths in roots.items()}
    folders = sorted(found["train"])
    _refuse_empty(found, roots, settings)
    names, label_of = ordered_names(folders, settings.class_names, "image folder")
    max_bytes = max_file_bytes(settings.max_pixels)
    listings: dict[str, Listing] = {}
    for split, classes in found.items():
        unknown = sorted(classes.keys() - label_of.keys())
        if unknown:
            raise DataError(
                f"dataset.{split}: the class folder {unknown[0]!r} in {roots[split][0]} is not among the "
                f"{len(folders)} of the training images{nearest(unknown[0], folders)}"
            )
        ordered = sorted(classes, key=lambda name: label_of[name])
        images = [image for name in ordered for image in classes[name]]
        labels = [label_of[name] for name in ordered for _ in classes[name]]
        listings[split] = Files(images, labels, max_bytes)
    return Source("folder", names, listings)


def _roots(value: str | list[str], base: Path, setting: str) -> list[Path]:
    items = [value] if isinstance(value, str) else value
    if not items:
        raise DataError(f"{setting} is an empty list: name at least one folder, or null")
    paths = [base / Path(item).expanduser() for item in items]
    for path, item in zip(paths, items, strict=True):
        if path.is_dir():
            continue
        if path.exists():
            raise DataError(f"{setting}: {path} is a file, but a folder with one folder per class is needed: unpack it")
        raise DataError(f"{setting}: {path} does not exist{nearest_path(path, item)}")
    return paths


def _refuse_nested(roots: dict[str, list[Path]]) -> None:
    listed = [(split, path, path.resolve()) for split, paths in roots.items() for path in paths]
    for split, path, real in listed:
        for other, other_path, other_real in listed:
            if path is not other_path and real.is_relative_to(other_real):
                raise DataError(
                    f"dataset.{split}: {path} lies in {other_path} of dataset.{other}, so that its images would be "
                    f"counted twice: give each split a folder of its own"
                )


def _refuse_empty(
    found: dict[str, dict[str, list[File]]], roots: dict[str, list[Path]], settings: DatasetSettings
) -> None:
    root = roots["train"][0]
    if not found["train"]:
        raise DataError(f"dataset.train: {root} holds no class folder: it must look like {root}/CLASS/image.png")
    empty = [name for name, images in found["train"].items() if not images]
    if empty and settings.empty_classes == "error":
        raise DataError(
            f"dataset.train: the class folder {empty[0]!r} in {root} holds no image: fill or remove it, or set "
            f"dataset.empty_classes: drop"
        )


def scan(roots: list[Path], split: str, bad: BadImages, only: Collection[str] | None = None) -> dict[str, list[File]]:
    """Class folder -> its images, over all roots of a split; ``only`` names the folders wanted (``None``: all)."""
    classes: dict[str, list[File]] = {}
    for number, root in enumerate(roots):
        walk = _Walk(root, f"{number}/" if len(roots) > 1 else "", split, bad)
        for name, images in walk.classes(only).items():
            classes.setdefault(name, []).extend(images)
    return classes


class _Walk:
    """One pass over a root."""

    def __init__(self, root: Path, prefix: str, split: str, bad: BadImages) -> None:
        self.root, self.prefix, self.split, self.bad = root, prefix, split, bad
        self.text = root.as_posix()

    def classes(self, only: Collection[str] | None) -> dict[str, list[File]]:
        held = [entry for entry in entries(self.root) if only is None or entry.name in only]
        folders = [entry for entry in held if is_folder(entry)]
        self._refuse_level(folders)
        for entry in held:
            if not is_folder(entry) and looks_like_image(entry.name):
                self._refuse(entry, "lies beside the class folders: move it into one")
        found: dict[str, list[File]] = {}
        names: dict[tuple[int, int], str] = {}
        for folder in folders:
            (name,) = check_class_names([unicodedata.normalize("NFC", folder.name)], str(self.root))
            if name in found:
                raise DataError(
                    f"{self.root}: two class folders are named {name!r} in different Unicode forms: rename one"
                )
            other = names.setdefault(identity(folder.path), name)
            if other != name:
                raise DataError(
                    f"{self.root}: the class folders {other!r} and {name!r} are one and the same folder, so that its "
                    f"images would be of both classes: remove one of the links"
                )
            found[name] = sorted(self._images(Path(folder.path)), key=lambda image: image.name)
        return found

    def _refuse_level(self, folders: list[os.DirEntry[str]]) -> None:
        """The commonest mistake: naming the folder above the class folders."""
        names = [printable(folder.name) for folder in folders]
        setting = f"dataset.{self.split}"
        if names and all(n.lower() in _SPLIT_NAMES for n in names) and all(map(_holds_folders, folders)):
            guess = next((name for name in names if name.lower().startswith(self.split[:3])), names[0])
            raise DataError(
                f"{setting}: {self.root} holds the folders {', '.join(names)}, which look like splits, not classes: "
                f"set {setting} to {self.root / guess}, and dataset.validation and dataset.test to theirs (or null)"
            )
        if len(folders) == 1 and _holds_folders(folders[0]):
            raise DataError(
                f"{setting}: {self.root} holds a single folder, {names[0]}, and that holds folders: set {setting} to "
                f"{self.root / names[0]}, or add the second class"
            )

    def _images(self, folder: Path) -> Iterator[File]:
        for entry, problem in files_below(folder, (identity(self.root),)):
            if problem is not None:
                self._refuse(entry, problem)
            elif printable(entry.name) != entry.name or printable(entry.path) != entry.path:
                self._refuse(entry, "has a file name that is not UTF-8: rename it")
            else:
                yield File(self.text, Path(entry.path).relative_to(self.root).as_posix(), self.prefix)

    def _refuse(self, entry: os.DirEntry[str], why: str) -> None:
        relative = printable(Path(entry.path).relative_to(self.root).as_posix())
        self.bad.add(self.split, self.prefix + relative, printable(entry.path), Undecodable(why))


def _holds_folders(folder: os.DirEntry[str]) -> bool:
    return any(is_folder(entry) for entry in entries(Path(folder.path)))
