"""Anybody's small set of images, read so that it can be judged as a distilled set is."""

from __future__ import annotations

import contextlib
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
_REMEDY = "undo the normalisation (x * std + mean), clip to [0, 1], and write 8-bit PNG files"


def read_set(
    path: Path, class_names: Sequence[str], transform: Callable[[Image.Image], Tensor], max_pixels: int
) -> DistilledSet:
    """A set of images of any origin, its classes numbered as ``class_names`` numbers them.

    Images that are all square and of one size stay as they are, as those of a distilled set do; others are resized and
    cropped. An encoder normalises what it is given, so images that were normalised already are refused.

    Args:
        path: a distilled dataset; a folder with a folder of images for each class, called by its name or number; or a
            Parquet file in Hugging Face layout, its labels named as the classes, or the numbers of these.
        class_names: the ``C`` classes of the data that it is judged on.
        transform: PIL image -> ``(3, s, s)`` uint8, for images that differ in size.
        max_pixels: see ``clpdd.datasets.decode.decode_image``.

    Raises:
        DataError: nothing there, files of tensors, float images, unknown classes, or classes without an image.
        ArtifactError: a distilled dataset that is damaged.
    """
    if (path / "distilled.json").is_file():
        return _own(path, class_names)
    _refuse_tensors(path)
    if (path / "data.parquet").is_file():  # what ``export`` writes for Hugging Face
        path = path / "data.parquet"
    _refuse_soft_labels(path)
    source = _source(path, max_pixels)
    listing, numbers = source.listings["train"], _numbers(_meant(source.class_names, path), class_names, path)
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


def _source(path: Path, max_pixels: int) -> Source:
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if not path.is_dir():
        _refuse_arrays(path)
    layout = "folder" if path.is_dir() else "parquet"
    settings = DatasetSettings(name=layout, train=str(path.resolve()), max_pixels=max_pixels)
    return open_source(settings, Path.cwd(), BadImages(skip=False))


def _numbers(given: Sequence[str], known: Sequence[str], path: Path) -> list[int]:
    """For each class of the set its number among the known ones: by name, or where all are numbers by number."""
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


def _refuse_soft_labels(path: Path) -> None:
    """Sets whose labels are not hard, which only the distilled folder itself says in full."""
    soft = (path / "soft_labels.json").is_file()
    if path.suffix == ".parquet" and path.is_file():
        with contextlib.suppress(OSError, pa.ArrowException):  # told by the reader
            soft = "soft_label" in pq.read_schema(path).names
    if soft:
        raise DataError(f"{path} has soft labels, which are not read from there: name the distilled folder it is from")


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


def _refuse_arrays(path: Path) -> None:
    """Parquet files whose images are nested lists of numbers."""
    try:
        schema = pq.read_schema(path)
        kind = schema.field("image").type
        if not _is_list(kind):
            return
        column: Any = pq.read_table(path, columns=["image"]).column("image").combine_chunks()
    except (KeyError, OSError, pa.ArrowException):
        return  # told by the reader
    while _is_list(column.type):
        column = column.flatten()
    try:
        extremes = pc.min_max(column.cast(pa.float64())).as_py()
    except pa.ArrowException:
        extremes = {"min": None}
    if extremes["min"] is None:
        raise DataError(
            f"{path}: column 'image' holds lists of {column.type}, where encoded images are read: write PNG"
        )
    _refuse(str(path), "column 'image'", extremes["min"], extremes["max"], pa.types.is_floating(column.type))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


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
