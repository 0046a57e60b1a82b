"""Anybody's small set of images, read so that it can be judged as a distilled set is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ..config.dataset import DatasetSettings
from ..datasets.build import open_source
from ..datasets.decode import Undecodable, decode_image, identify
from ..datasets.listing import BadImages, Listing, Source, nearest
from ..datasets.walking import files_below
from ..errors import DataError
from ..storage.files import read_json
from .dataset import DistilledSet

__all__ = ["read_set"]

_TENSORS = (".pt", ".pth", ".ckpt", ".npy", ".npz", ".pkl", ".pickle", ".safetensors", ".h5", ".hdf5")
_COLUMNS = ("image", "label")
_PIXELS = "pixel_values"  # what Hugging Face's processors make of an image, normalised
_REMEDY = "undo the normalisation (x * std + mean), clip to [0, 1], and write 8-bit PNG files"


def read_set(
    path: Path,
    class_names: Sequence[str],
    transform: Callable[[Image.Image], Tensor],
    max_pixels: int,
    columns: tuple[str, str] = _COLUMNS,
) -> DistilledSet:
    """A set of images of any origin, its classes numbered as ``class_names`` numbers them.

    Images that are all square and of one size stay as they are, as those of a distilled set do; others are resized and
    cropped. An encoder normalises what it is given, so images that were normalised already are refused.

    Args:
        path: a distilled dataset; a folder with a folder of images for each class, called by its name or number; or a
            Parquet file in Hugging Face layout, its labels named as the classes, or the numbers of these. Integers
            without names in the file are numbers.
        class_names: the ``C`` classes of the data that it is judged on.
        transform: PIL image -> ``(3, s, s)`` uint8, for images that differ in size.
        max_pixels: see ``clpdd.datasets.decode.decode_image``.
        columns: of images and of labels in a Parquet file; what it does not have is looked for in the usual ones.

    Raises:
        DataError: nothing there, files of tensors, float images, unknown classes, classes without an image, or a file
            that holds several draws of a random method.
        ArtifactError: a distilled dataset that is damaged.
    """
    if (path / "distilled.json").is_file():
        return _own(path, class_names)
    _refuse_tensors(path)
    if (path / "data.parquet").is_file():  # what ``export`` writes for Hugging Face
        path = path / "data.parquet"
    _refuse_lossy(path)
    settings = _settings(path, max_pixels, columns)
    source = _source(path, settings)
    given = _meant(source.class_names, path)
    listing, numbers = source.listings["train"], _numbers(given, class_names, path, source.unnamed)
    labels = torch.tensor([numbers[label] for label in listing.labels.tolist()], dtype=torch.int64)
    missing = [name for c, name in enumerate(class_names) if not bool((labels == c).any())]
    if missing:
        raise DataError(
            f"{path} has no image of {len(missing)} of {len(class_names)} classes, e.g. {missing[0]!r}: a probe needs "
            f"one of each"
        )
    order = labels.argsort(stable=True)
    images = _images(listing, transform, max_pixels)[order]
    info = {"method": path.stem or path.name, "images_per_class": len(labels) / len(class_names)}
    return DistilledSet(images, labels[order], list(class_names), info)


def _own(path: Path, class_names: Sequence[str]) -> DistilledSet:
    data = DistilledSet.load(path)
    if data.class_names != list(class_names):
        raise DataError(f"{path} has other classes than the data it is to be judged on: name a set of the same ones")
    if not len(data):
        raise DataError(f"{path} holds no images (method {data.method}): there is nothing to judge")
    return data


class _Refused(BadImages):
    """Images that cannot be used, told without settings: those are of the data, not of a set to be judged."""

    def add(self, split: str, name: str, where: str, problem: Undecodable) -> None:
        raise DataError(f"{where}: the image {problem}: repair or remove it") from problem


def _settings(path: Path, max_pixels: int, columns: tuple[str, str]) -> DatasetSettings:
    if not path.exists():
        raise DataError(f"{path} does not exist")
    found = _columns(path, columns)
    return DatasetSettings(
        name="folder" if path.is_dir() else "parquet",
        train=str(path.resolve()),
        image_column=found[0],
        label_column=found[1],
        max_pixels=max_pixels,
        empty_classes="drop",  # told by ``read_set``, with what a probe needs
    )


def _columns(path: Path, wanted: tuple[str, str]) -> tuple[str, str]:
    """The columns of images and labels: as the data call theirs, or the usual ones where a file has these instead."""
    if path.is_dir():
        return _COLUMNS
    try:
        names = pq.read_schema(path).names
    except (OSError, pa.ArrowException):
        return _COLUMNS  # told by the reader
    image, label = (
        usual if usual in names and one not in names else one for one, usual in zip(wanted, _COLUMNS, strict=True)
    )
    return image, label


def _source(path: Path, settings: DatasetSettings) -> Source:
    if not path.is_dir():
        _refuse_arrays(path, settings.image_column)
    try:
        return open_source(settings, Path.cwd(), _Refused(skip=False))
    except DataError as error:
        raise DataError(_of_a_set(str(error))) from error


def _of_a_set(message: str) -> str:
    """What a reader says of the data's settings, said of a set that is named on the command line."""
    message = re.sub(r"set dataset\.train to (.+?),? (and dataset\.validation .*|or add )", _name_it, message)
    return message.removeprefix("dataset.train: ")


def _name_it(found: re.Match[str]) -> str:
    return f"name {found[1]}" + (", or add " if found[2].startswith("or") else " instead")


def _numbers(given: Sequence[str], known: Sequence[str], path: Path, unnamed: bool) -> list[int]:
    """For each class of the set its number among the known ones: by name, or where all are numbers by number.

    Numbers that the file does not name come first of all as numbers: class 2 of the data may be called 10.
    """
    if unnamed and all(name.isdecimal() and int(name) < len(known) for name in given):
        return [int(name) for name in given]
    if all(name in known for name in given):
        return [known.index(name) for name in given]
    if all(name.isdecimal() and int(name) < len(known) for name in given):
        return [int(name) for name in given]
    strange = next(name for name in given if name not in known)
    raise DataError(
        f"{path}: the class {strange!r} is not among the {len(known)} of the data{nearest(strange, known)}; call the "
        f"classes as the data do, or 0 to {len(known) - 1}"
    )


def _meant(given: Sequence[str], path: Path) -> list[str]:
    """Names of the classes whose folders have these: where ``export`` could not keep them, it noted them."""
    noted = path / "classes.json"
    if not noted.is_file():
        return list(given)
    known = read_json(noted)
    if not isinstance(known, dict) or not all(isinstance(name, str) for name in known.values()):
        raise DataError(f"{noted} maps no folders to classes: correct or remove it")
    return [known.get(name, name) for name in given]


def _images(listing: Listing, transform: Callable[[Image.Image], Tensor], max_pixels: int) -> Tensor:
    """``(n, 3, s, s)`` uint8, a photograph at a time: in a set of several sizes none is kept at its own."""
    sizes = {_size(data) for data in listing.read(range(len(listing.labels)))}
    width, height = next(iter(sizes))
    alike = len(sizes) == 1 and width == height
    images = []
    for row, data in enumerate(listing.read(range(len(listing.labels)))):
        where = listing.where(row)
        if isinstance(data, Undecodable):
            raise DataError(f"{where}: the image {data}")
        _refuse_floats(data, where, max_pixels)
        picture = decode_image(data, max_pixels, where)
        images.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1) if alike else transform(picture))
    return torch.stack(images)


def _size(data: bytes | Undecodable) -> tuple[int, int]:
    """Width and height by the header; (0, 1) of what has none, which the decoder tells of."""
    try:
        return (0, 1) if isinstance(data, Undecodable) else identify(data).size
    except Undecodable:
        return 0, 1


# -- what would be normalised twice ------------------------------------------------------------------------------------


def _refuse_tensors(path: Path) -> None:
    files = [path] if path.is_file() else []
    if path.is_dir():
        files = sorted(Path(entry.path) for entry, problem in files_below(path) if problem is None)
    for file in files:
        if file.suffix.lower() in _TENSORS and file.name != "classifier.safetensors":  # handed over by ``export``
            raise DataError(
                f"{file} holds tensors, which mostly were normalised already, and whose file may run code: {_REMEDY}, "
                f"a folder for each class"
            )


def _refuse_lossy(path: Path) -> None:
    """Sets of soft labels, or of several draws, which only the distilled folder itself says in full."""
    soft, draws = (path / "soft_labels.json").is_file(), 1
    if path.suffix == ".parquet" and path.is_file():
        with contextlib.suppress(OSError, pa.ArrowException):  # told by the reader
            names = pq.read_schema(path).names
            soft = "soft_label" in names
            if "draw" in names:
                draws = pc.count_distinct(pq.read_table(path, columns=["draw"]).column("draw")).as_py()
    if soft:
        raise DataError(f"{path} has soft labels, which are not read from there: name the distilled folder it is from")
    if draws > 1:
        raise DataError(
            f"{path} holds {draws} independent draws, each a set of its own: name the distilled folder it is from, or "
            f"export one of them (clpdd export --draw)"
        )


def _refuse_floats(data: bytes, where: str, max_pixels: int) -> None:
    try:
        opened = identify(data)
    except Undecodable:
        return  # told by the decoder
    if opened.mode != "F" or opened.size[0] * opened.size[1] > max_pixels:
        return
    try:
        values = np.asarray(opened)
    except Exception:  # Pillow's decoders raise whatever damaged bytes lead them to; told by the decoder
        return
    _refuse(where, "the image", float(values.min()), float(values.max()))


def _refuse_arrays(path: Path, image_column: str) -> None:
    """Parquet files whose images are nested lists of numbers, or tensors."""
    try:
        schema = pq.read_schema(path)
        name = image_column if image_column in schema.names else _PIXELS
        if not _is_list(_stored(schema.field(name).type)):
            return
        column: Any = pq.read_table(path, columns=[name]).column(name).combine_chunks()
    except (KeyError, OSError, pa.ArrowException):
        return  # told by the reader
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    while _is_list(column.type):
        column = column.flatten()
    try:
        extremes = pc.min_max(column.cast(pa.float64())).as_py()
    except pa.ArrowException:
        extremes = {"min": None}
    if extremes["min"] is None:
        raise DataError(
            f"{path}: column {name!r} holds lists of {column.type}, where encoded images are read: write PNG"
        )
    _refuse(str(path), f"column {name!r}", extremes["min"], extremes["max"], pa.types.is_floating(column.type))


def _stored(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _refuse(where: str, what: str, low: float, high: float, floating: bool = True) -> None:
    kind = "floats" if floating else "integers in lists"
    said = f"{where}: {what} holds {kind} from {low:g} to {high:g}"
    if low < 0 or high > 255:
        raise DataError(
            f"{said}, outside [0, 1] and 0 to 255: the images were normalised already, and the encoder would normalise "
            f"them again; {_REMEDY}"
        )
    raise DataError(
        f"{said}, where encoded 8-bit images are read: whether they were normalised cannot be seen; write PNG"
    )
