"""Small datasets in the very layout that the published ones have on disk: what cannot be downloaded is generated."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from PIL import Image

from clpdd.catalogue.datasets import entry
from clpdd.datasets.sources.imagenet import subset, wordnet_ids

__all__ = [
    "TREES",
    "imagenet_archives",
    "imagenet_folder",
    "imagenet_kaggle",
    "imagenet_shards",
    "jpeg",
    "pack",
    "table",
]


class _Pictures:
    """Encoded images, no two alike."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, kind: str = "JPEG", side: int = 32) -> bytes:
        self._count += 1
        low = np.random.default_rng(self._count).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(low).resize((side, side), Image.Resampling.BICUBIC).save(stream, kind)
        return stream.getvalue()


jpeg = _Pictures()


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def pack(path: Path, files: Iterable[tuple[str, bytes]], mode: str = "w") -> None:
    """A tar archive of ``(name, bytes)``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


# -- ImageNet ----------------------------------------------------------------------------------------------------------


def _ids(name: str, others: int = 1) -> list[str]:
    """The classes of a dataset, and some that it must pass over."""
    own = subset(entry(name).options["subset"])
    return [*own, *[i for i in wordnet_ids() if i not in own][:others]]


def imagenet_folder(root: Path, name: str, per_class: int = 3) -> None:
    for i in _ids(name):
        for k in range(per_class):
            _write(root / f"train/{i}/{i}_{k}.JPEG", jpeg())
        _write(root / f"val/{i}/ILSVRC2012_val_{int(i[1:]) % 50_000:08d}.JPEG", jpeg())


def _meta() -> bytes:
    """``meta.mat``: the leaves in an order of their own, and an inner node behind them."""
    ids = [*reversed(wordnet_ids()), "n00001740"]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.zeros((len(ids), 1), kind)
    for k, i in enumerate(ids):
        synsets[k, 0] = (k + 1, i, "word", "gloss", 0 if k < 1000 else 1000)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"synsets": synsets}, do_compression=True)
    return stream.getvalue()


def _truth(ids: list[str]) -> list[int]:
    order = {i: k + 1 for k, i in enumerate(reversed(wordnet_ids()))}
    return [order[i] for i in ids]


def imagenet_archives(root: Path, name: str, per_class: int = 3, *, unpacked_kit: bool = False) -> None:
    ids, train = _ids(name), []
    for i in ids:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as inner:
            for k in range(per_class):
                member, data = tarfile.TarInfo(f"{i}_{k}.JPEG"), jpeg()
                member.size = len(data)
                inner.addfile(member, io.BytesIO(data))
        train.append((f"{i}.tar", stream.getvalue()))
    pack(root / "ILSVRC2012_img_train.tar", train)
    pack(
        root / "ILSVRC2012_img_val.tar",
        [(f"ILSVRC2012_val_{k:08d}.JPEG", jpeg()) for k in range(1, len(ids) + 1)],
    )
    truth = "".join(f"{number}\n" for number in _truth(ids))
    kit = [
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode()),
        ("ILSVRC2012_devkit_t12/data/meta.mat", _meta()),
    ]
    if unpacked_kit:
        for file, data in kit:
            _write(root / file, data)
    else:
        pack(root / "ILSVRC2012_devkit_t12.tar.gz", kit, "w:gz")


def imagenet_kaggle(root: Path, name: str, per_class: int = 3) -> None:
    home, ids = root / "ILSVRC/Data/CLS-LOC", _ids(name)
    lines = ["ImageId,PredictionString"]
    for number, i in enumerate(ids, start=1):
        for k in range(per_class):
            _write(home / f"train/{i}/{i}_{k}.JPEG", jpeg())
        _write(home / f"val/ILSVRC2012_val_{number:08d}.JPEG", jpeg())
        lines.append(f"ILSVRC2012_val_{number:08d},{i} 10 20 30 40 {i} 1 2 3 4 ")
    _write(root / "LOC_val_solution.csv", "\n".join(lines) + "\n")


def table(path: Path, labels: list[int], columns: tuple[str, str], names: list[str], kind: str = "JPEG") -> None:
    """A Parquet file in the hub's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": jpeg(kind), "path": None} for _ in labels]
    kinds = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.table({columns[0]: pa.array(images, kinds), columns[1]: pa.array(labels, pa.int64())})
    features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": names, "_type": "ClassLabel"}}
    rows = rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(rows, path)


def imagenet_shards(root: Path, name: str, per_class: int = 3) -> None:
    labels = [wordnet_ids().index(i) for i in _ids(name)]
    names = [f"name {k}" for k in range(1000)]
    for shard in range(2):
        part = (labels * per_class)[shard::2]
        table(root / f"data/train-{shard:05d}-of-00002.parquet", part, ("image", "label"), names)
    table(root / "data/validation-00000-of-00001.parquet", labels, ("image", "label"), names)
    table(root / "data/test-00000-of-00001.parquet", [-1] * 3, ("image", "label"), names)


# -- others ------------------------------------------------------------------------------------------------------------


def _cifar(root: Path, name: str, per_class: int = 3) -> None:
    classes, folder = entry(name).classes, root / entry(name).options["folder"]
    rng = np.random.default_rng(0)

    def block(labels: np.ndarray) -> bytes:
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        columns = [labels] if classes == 10 else [labels // 5, labels]
        return np.column_stack([*(c.astype(np.uint8) for c in columns), pixels]).tobytes()

    every = np.repeat(np.arange(classes), per_class)
    rng.shuffle(every)
    names = "".join(f"class {k}\n" for k in range(classes)) + "\n"
    if classes == 10:
        for k, part in enumerate(np.array_split(every, 5), start=1):
            _write(folder / f"data_batch_{k}.bin", block(part))
        _write(folder / "test_batch.bin", block(np.arange(10)))
        _write(folder / "batches.meta.txt", names)
    else:
        _write(folder / "train.bin", block(every))
        _write(folder / "test.bin", block(np.arange(100)))
        _write(folder / "fine_label_names.txt", names)


def _food(root: Path, name: str, per_class: int = 3) -> None:
    home = root / "food-101"
    classes = [f"dish_{k:03d}" for k in range(entry(name).classes)]
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, food in enumerate(classes):
        for k in range(per_class + 1):
            line = f"{food}/{1000 * label + k}"
            _write(home / f"images/{line}.jpg", jpeg())
            lists["train" if k < per_class else "test"].append(line)
    _write(home / "meta/classes.txt", "\n".join(classes) + "\n")
    for split, lines in lists.items():
        _write(home / f"meta/{split}.txt", "\n".join(lines) + "\n")


def _flowers(root: Path, name: str, per_class: int = 3) -> None:
    home, classes = root / "flowers-102", entry(name).classes
    labels = np.tile(np.arange(1, classes + 1), per_class + 2)
    for number in range(1, len(labels) + 1):
        _write(home / f"jpg/image_{number:05d}.jpg", jpeg())
    parts = np.split(np.arange(1, len(labels) + 1), [per_class * classes, (per_class + 1) * classes])
    scipy.io.savemat(home / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    scipy.io.savemat(home / "setid.mat", dict(zip(("trnid", "valid", "tstid"), (p[None] for p in parts), strict=True)))


def _cub(root: Path, name: str, per_class: int = 3) -> None:
    home, classes = root / "CUB_200_2011", entry(name).classes
    lines: dict[str, list[str]] = {n: [] for n in ("images", "image_class_labels", "train_test_split", "classes")}
    number = 0
    for label in range(1, classes + 1):
        folder = f"{label:03d}.Bird_of_{label}"
        lines["classes"].append(f"{label} {folder}")
        for k in range(per_class + 1):
            number += 1
            _write(home / f"images/{folder}/Bird_{k:04d}_{number}.jpg", jpeg())
            lines["images"].append(f"{number} {folder}/Bird_{k:04d}_{number}.jpg")
            lines["image_class_labels"].append(f"{number} {label}")
            lines["train_test_split"].append(f"{number} {int(k < per_class)}")
    for file, text in lines.items():
        _write(home / f"{file}.txt", "\n".join(text) + "\n")


def _dogs(root: Path, name: str, per_class: int = 3) -> None:
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label in range(1, entry(name).classes + 1):
        folder = f"n{2085000 + label:08d}-Breed_{label}"
        for k in range(per_class + 1):
            file = f"{folder}/n{2085000 + label:08d}_{k}.jpg"
            _write(root / "Images" / file, jpeg())
            lists["train" if k < per_class else "test"].append((file, label))
    for split, rows in lists.items():
        cells = np.empty((len(rows), 1), object)
        cells[:, 0] = [file for file, _ in rows]
        labels = np.asarray([[label] for _, label in rows], float)
        scipy.io.savemat(root / f"{split}_list.mat", {"file_list": cells, "annotation_list": cells, "labels": labels})


def _artbench(root: Path, name: str, per_class: int = 3) -> None:
    home = root / "artbench-10-imagefolder-split"
    for style in range(entry(name).classes):
        for k in range(per_class):
            _write(home / f"train/style_{style}/painter_{k}.jpg", jpeg())
        _write(home / f"test/style_{style}/painter_9.jpg", jpeg())


def _waterbirds(root: Path, name: str, per_class: int = 3) -> None:
    home = root / "waterbird_complete95_forest2water2"
    rows: list[list[str | int]] = []
    for bird in (0, 1):
        for place in (0, 1):
            for split in (0, 1, 2):
                for k in range(per_class):
                    file = f"{bird + 1:03d}.Some_bird/Bird_{bird}{place}{split}{k}.jpg"
                    _write(home / file, jpeg())
                    rows.append([len(rows) + 1, file, bird, split, place, f"/o/ocean/{k}.jpg"])
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(
        [["img_id", "img_filename", "y", "split", "place", "place_filename"], *rows]
    )
    _write(home / "metadata.csv", stream.getvalue())


def _spawrious(root: Path, name: str, per_class: int = 3) -> None:
    for half in (0, 1):
        for place in ("beach", "desert", "dirt", "jungle", "mountain", "snow"):
            for dog in ("bulldog", "corgi", "dachshund", "labrador"):
                for k in range(100 if per_class > 50 else 10):
                    _write(root / f"spawrious224/{half}/{place}/{dog}/{place}_{dog}_{k}.png", jpeg("PNG", 8))


def _fashion(root: Path, name: str, per_class: int = 3) -> None:
    """``torchvision:FashionMNIST``: gzipped IDX files, and unpacked ones as torchvision leaves them."""
    raw, rng = root / "FashionMNIST/raw", np.random.default_rng(0)
    for part, count in (("train", 10 * per_class), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        shape = np.asarray(pixels.shape, ">i4").tobytes()
        for kind, data in (
            ("images-idx3", b"\x00\x00\x08\x03" + shape + pixels.tobytes()),
            ("labels-idx1", b"\x00\x00\x08\x01" + np.asarray([count], ">i4").tobytes() + labels.tobytes()),
        ):
            _write(raw / f"{part}-{kind}-ubyte", data)
            _write(raw / f"{part}-{kind}-ubyte.gz", gzip.compress(data))


Tree = Callable[[Path, str, int], None]

_LAYOUT: dict[str, Tree] = {
    "imagenet": imagenet_folder,
    "cifar": _cifar,
    "food101": _food,
    "flowers102": _flowers,
    "cub200": _cub,
    "stanford-dogs": _dogs,
    "splits": _artbench,
    "waterbirds": _waterbirds,
    "spawrious": _spawrious,
    "torchvision": _fashion,
}


class _Trees:
    """``TREES[name](root, name, per_class)`` writes a small dataset of that name below ``root``."""

    def __getitem__(self, name: str) -> Tree:
        return _LAYOUT[entry(name).layout]


TREES = _Trees()
