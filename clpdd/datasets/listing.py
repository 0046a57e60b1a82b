"""What every source of images looks like to the index: rows with labels whose bytes come when asked for."""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..storage.files import canonical_json, sha256_bytes
from .decode import Undecodable

__all__ = [
    "BadImages",
    "File",
    "Files",
    "Images",
    "Labels",
    "Listing",
    "Source",
    "Subset",
    "check_class_names",
    "max_file_bytes",
    "nearest",
    "printable",
    "read_file",
]

Labels = NDArray[np.int64]


class Listing(ABC):
    """The images of one given split. Labels are known; bytes are read on demand, in order.

    Attributes:
        labels: ``(N,)`` int64 in ``[0, C)``.
        groups: the group of every row, as ``"landbird on water"``; ``None`` where the dataset has no groups.
    """

    labels: Labels
    groups: Sequence[str] | None = None

    @abstractmethod
    def name(self, row: int) -> str:
        """The image's id: unique in the listing, the same on every machine."""

    @abstractmethod
    def where(self, row: int) -> str:
        """The image for people: file, and row where a file holds many."""

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        """For each of ``rows`` (ascending), the encoded image or why there is none."""

    def stamp(self, row: int) -> str | None:
        """What changes when the image does, found without reading it; ``None`` where nothing tells."""
        return None

    def digest(self) -> str | None:
        """What tells whether the listing is what it was, found without reading images; ``None`` where nothing does."""
        marks = hashlib.sha256(self.labels.tobytes())
        for row in range(len(self.labels)):
            stamp = self.stamp(row)
            if stamp is None:
                return None
            group = "" if self.groups is None else self.groups[row]
            marks.update(f"{self.name(row)}\0{group}\0{stamp}\n".encode(errors="surrogateescape"))
        return marks.hexdigest()


@dataclass(frozen=True, slots=True)
class File:
    """An image that is a file, ``root/name``, or a stretch of the uncompressed archive ``root`` (``offset`` >= 0)."""

    root: str
    name: str
    prefix: str = ""
    offset: int = -1
    length: int = 0

    @property
    def path(self) -> str:
        """The file to open."""
        return self.root if self.offset >= 0 else f"{self.root}/{self.name}"


class Files(Listing):
    """Images that lie on disk one by one: they are read in any order, from any thread, and can be referred to.

    Args:
        files: ``N`` files, in the order of the rows.
        labels: ``N`` integers in ``[0, C)``.
        groups: ``N`` groups, or ``None``.
    """

    def __init__(
        self, files: list[File], labels: Sequence[int], max_bytes: int, groups: Sequence[str] | None = None
    ) -> None:
        self.files, self.groups, self._max_bytes = files, groups, max_bytes
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, row: int) -> str:
        """Path below the root."""
        file = self.files[row]
        return file.prefix + file.name

    def where(self, row: int) -> str:
        """Path, and the member's name in an archive."""
        file = self.files[row]
        return file.path if file.offset < 0 else f"{file.root}, member {file.name}"

    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        """One file after the other."""
        return map(self.read_one, rows)

    def read_one(self, row: int) -> bytes | Undecodable:
        """The encoded image of a row."""
        file = self.files[row]
        try:
            return read_file(Path(file.path), self._max_bytes, file.offset, file.length)
        except Undecodable as problem:
            return problem

    def stamp(self, row: int) -> str | None:
        """Path, size, time of the last change and place in the file."""
        file = self.files[row]
        try:
            status = os.stat(file.path)
        except OSError:
            return None
        return f"{file.path}\0{status.st_size}\0{status.st_mtime_ns}\0{file.offset}\0{file.length}"


class Subset(Listing):
    """Some rows of another listing, under labels of their own.

    Args:
        rows: ``(M,)`` ascending rows of ``inner``.
        labels: ``(M,)`` labels.
    """

    def __init__(self, inner: Listing, rows: Labels, labels: Labels) -> None:
        self._inner, self._rows, self.labels = inner, rows, labels

    def name(self, row: int) -> str:
        """As in the whole listing."""
        return self._inner.name(int(self._rows[row]))

    def where(self, row: int) -> str:
        """As in the whole listing."""
        return self._inner.where(int(self._rows[row]))

    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        """As in the whole listing."""
        return self._inner.read(self._rows[np.asarray(rows, dtype=np.int64)].tolist())

    def stamp(self, row: int) -> str | None:
        """As in the whole listing."""
        return self._inner.stamp(int(self._rows[row]))


@dataclass(frozen=True)
class Source:
    """A dataset before it is split: the given splits (``"train"`` always) and the names of its classes.

    ``unnamed``: the names are nothing but the numbers that the labels were given as.
    """

    name: str
    class_names: list[str]
    listings: dict[str, Listing]
    unnamed: bool = False

    def digest(self) -> str | None:
        """Over names, classes and all listings; ``None`` where one of them cannot tell whether it has changed."""
        found = {split: listing.digest() for split, listing in self.listings.items()}
        if None in found.values():
            return None
        return sha256_bytes(canonical_json([self.name, self.class_names, found]).encode(errors="surrogateescape"))


@dataclass
class BadImages:
    """What to do about images that cannot be used: stop, or leave them out and keep the list."""

    skip: bool
    skipped: list[dict[str, str]] = field(default_factory=list)

    def add(self, split: str, name: str, where: str, problem: Undecodable) -> None:
        """Note one image; raises ``DataError`` unless they are to be skipped."""
        if not self.skip:
            raise DataError(
                f"{where}: the image {problem}. Repair or remove it, or set dataset.bad_images: skip to leave out "
                f"every such image (summary.json beside the indexes then lists them)"
            ) from problem
        self.skipped.append({"split": split, "id": name, "reason": str(problem)})


class Images(Listing):
    """Images in memory, stored losslessly as PNG.

    Args:
        images: ``(N, h, w)`` or ``(N, h, w, 3)`` uint8 (also of torch), or a sequence of PIL images or such arrays.
        labels: ``(N,)`` integers in ``[0, C)``.
        prefix: the beginning of every id.

    Raises:
        DataError: another dtype or shape, as many labels as images not given, or labels out of range.
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | Sequence[Image.Image],
        labels: NDArray[np.integer[Any]],
        prefix: str,
        classes: int,
    ) -> None:
        if not isinstance(images, np.ndarray) and hasattr(images, "__array__"):
            images = np.asarray(images)
        if isinstance(images, np.ndarray):
            _check_array(images, prefix)
        given = np.asarray(labels)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise DataError(f"{prefix}: labels must be a vector of integers, got {given.dtype} of shape {given.shape}")
        if len(given) != len(images):
            raise DataError(f"{prefix}: {len(images)} images do not correspond to {len(given)} labels")
        wrong = np.flatnonzero((given < 0) | (given >= classes))
        if len(wrong):
            raise DataError(
                f"{prefix}, row {wrong[0]}: label {given[wrong[0]]}, but 0 to {classes - 1} is allowed, as there are "
                f"{classes} class names"
            )
        self.labels = given.astype(np.int64)
        self._images, self._prefix = images, prefix

    def name(self, row: int) -> str:
        """``prefix-000017``."""
        return f"{self._prefix}-{row:06d}"

    def where(self, row: int) -> str:
        """Row of the array."""
        return f"{self._prefix}, row {row}"

    def digest(self) -> str | None:
        """Over the pixels of an array; ``None`` of a sequence, whose images may be opened when asked for."""
        if not isinstance(self._images, np.ndarray):
            return None
        marks = hashlib.sha256(f"{self._prefix} {self._images.shape}".encode())
        marks.update(np.ascontiguousarray(self._images).data)
        marks.update(self.labels.tobytes())
        return marks.hexdigest()

    def read(self, rows: Sequence[int]) -> Iterator[bytes | Undecodable]:
        """Encode one image after the other."""
        for row in rows:
            image = self._images[row]
            if not isinstance(image, Image.Image):
                array = np.asarray(image)
                _check_array(array[None], self.where(row))
                image = Image.fromarray(array)
            try:
                stream = io.BytesIO()
                image.save(stream, "PNG")
                yield stream.getvalue()
            except (OSError, ValueError) as error:  # a PIL image that PNG cannot hold, or that is itself damaged
                yield Undecodable(f"cannot be stored as PNG: {error}")


def _check_array(images: NDArray[np.uint8], prefix: str) -> None:
    if images.dtype != np.uint8:
        raise DataError(
            f"{prefix}: images are {images.dtype}, but uint8 in 0 to 255 is needed: for floats in [0, 1] pass "
            f"np.rint(images * 255).astype(np.uint8)"
        )
    if images.ndim == 4 and images.shape[1] == 3 != images.shape[3]:
        raise DataError(
            f"{prefix}: images have shape {images.shape}; channels come last: pass images.transpose(0, 2, 3, 1)"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise DataError(f"{prefix}: images have shape {images.shape}, but (n, h, w) or (n, h, w, 3) is needed")


def check_class_names(names: Iterable[str], origin: str) -> list[str]:
    """``names`` as a list. Raises ``DataError`` for an empty, repeated or non-UTF-8 one."""
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(
                f"{origin}: class {len(checked)} has the name {name!r}, but a name must hold a visible sign"
            )
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{origin}: the class name {printable(name)} is not UTF-8: rename it") from None
        if name in checked:
            raise DataError(f"{origin}: two classes are named {name!r}: names must differ")
        checked.append(name)
    return checked


def printable(name: str) -> str:
    """``name`` with whatever is not UTF-8 written as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def nearest(name: str, options: Iterable[str]) -> str:
    """``"; did you mean X?"`` or nothing."""
    near = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def nearest_path(path: Path, written: str) -> str:
    """``"; did you mean X?"`` or nothing, of what lies beside ``path``, which the settings call ``written``."""
    if not path.parent.is_dir():
        return ""
    names = {beside.name: str(Path(written).parent / beside.name) for beside in path.parent.iterdir()}
    near = difflib.get_close_matches(path.name, [*names], n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]}?" if near else ""


def max_file_bytes(max_pixels: int) -> int:
    """The longest file that can hold an image of ``max_pixels`` pixels."""
    return 8 * max_pixels + (1 << 20)


def read_file(path: Path, max_bytes: int, offset: int = -1, length: int = 0) -> bytes:
    """The bytes of a regular file, or of ``length`` of them from ``offset`` >= 0, at most ``max_bytes``.

    The kind of file is looked at first: opening a named pipe would wait for ever. Raises ``Undecodable``.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Undecodable("is no regular file")
        size = length if offset >= 0 else status.st_size
        if size > max_bytes:
            raise Undecodable(f"is a file of {size} bytes, more than dataset.max_pixels pixels can take")
        if offset < 0:
            return path.read_bytes()
        with open(path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise Undecodable(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
