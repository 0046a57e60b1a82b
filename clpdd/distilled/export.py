"""Distilled sets in the forms that other tools read."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..errors import ArtifactError, ResourceError, SettingsError
from ..storage.files import canonical_json, explain_os_errors, flush, read_json, staged, write_bytes, write_json
from .dataset import DistilledSet, card, parquet_bytes, png_bytes
from .naming import folder_names, numbered

__all__ = ["FORMATS", "export"]

log = logging.getLogger(__name__)


def export(source: Path | str, form: str, target: Path | str, draw: int = 0) -> Path:
    """Write the distilled set in folder ``source`` to ``target`` in one of ``FORMATS``, whole or not at all.

    The same set gives the same bytes. Of a set of several independent draws (method ``random``) one is written, and the
    card, the metadata or the samples say which: ``draw`` is its number, from 0 on.

    - ``huggingface``: a folder with ``data.parquet`` and a card (``datasets.load_dataset(target)``);
    - ``folder``: ``CLASS/000.png`` (torchvision's ``ImageFolder``, which numbers the classes as the set does), in
      folders that bear the classes' own names (``naming.folder_names``), and ``classes.json``, folder -> class;
    - ``webdataset``: one tar of ``NAME.png``, ``NAME.cls`` (the label) and ``NAME.json``;
    - ``safetensors``: ``images (n, 3, s, s)`` uint8 and ``labels (n,)`` int64, class names as metadata.

    To a folder goes ``classifier.safetensors``, too: the encoder's probe on all real images. Soft labels go along: a
    column, ``soft_labels.json`` (file -> probabilities), ``soft_label`` in ``NAME.json``, a tensor
    ``soft_labels (n, C)`` float32.

    Raises:
        ArtifactError: ``source`` is no distilled set, or holds no images (method ``full``).
        SettingsError: it has no draw of that number.
        ResourceError: ``target`` exists already, or cannot be written.
    """
    source, target = Path(source), Path(target)
    data = DistilledSet.load(source)
    if not len(data):
        raise ArtifactError(f"{source} stands for all training images and holds none: there is nothing to export")
    data = _one_draw(data, draw, source)
    if target.exists():
        raise ResourceError(f"{target} exists already: choose another place, or remove it first")
    with explain_os_errors("write", target), staged(target) as staging:
        FORMATS[form](data, source, staging)
        os.replace(staging, target)
        flush(target.parent)
    return target


def _one_draw(data: DistilledSet, draw: int, source: Path) -> DistilledSet:
    numbers = data.draw_numbers
    if draw not in numbers:
        held = f"draws {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else "one draw, number 0"
        raise SettingsError(f"{source} has no draw {draw}: it holds {held}")
    if len(numbers) == 1:
        return data
    log.info("draw %d of %d independent ones (--draw chooses another)", draw, len(numbers))
    chosen = data.draws[numbers.index(draw)]
    return replace(chosen, info=data.info | {"draws": len(numbers), "draw": draw})


def _names(data: DistilledSet) -> list[str]:
    return [path.removesuffix(".png") for path in data._image_paths()]


def _hand_classifier_over(source: Path, target: Path) -> None:
    """Copy the full-data classifier; sets written by version 0.1 have none."""
    if (source / "classifier.safetensors").is_file():
        write_bytes(target / "classifier.safetensors", (source / "classifier.safetensors").read_bytes())


def _huggingface(data: DistilledSet, source: Path, target: Path) -> None:
    _hand_classifier_over(source, target)
    if "draws" in data.info:
        write_bytes(target / "data.parquet", parquet_bytes(data))
        write_bytes(target / "README.md", card(data).encode())
        return
    for name in ("README.md", "data.parquet"):
        write_bytes(target / name, (source / name).read_bytes())


def _folder(data: DistilledSet, source: Path, target: Path) -> None:
    folders = folder_names(data.class_names)
    files, seen = [], dict.fromkeys(range(data.classes), 0)
    for image, label in zip(data.images, data.labels.tolist(), strict=True):
        files.append(f"{folders[label]}/{seen[label]:03d}.png")
        seen[label] += 1
        write_bytes(target / files[-1], png_bytes(image))
    used = {folders[label]: data.class_names[label] for label, count in seen.items() if count}
    write_json(target / "classes.json", used)
    _hand_classifier_over(source, target)
    if data.soft_labels is not None:
        write_json(target / "soft_labels.json", dict(zip(files, data.soft_labels.tolist(), strict=True)))
    _tell_renamed(used, numbered(data.class_names))


def _tell_renamed(used: dict[str, str], with_labels: bool) -> None:
    """Say which classes have folders of other names, and why."""
    renamed = {folder: name for folder, name in used.items() if folder != name}
    if not renamed:
        return
    folder, name = next(iter(renamed.items()))
    why = (
        "their labels stand in front, since the order of the names is not that of the labels"
        if with_labels
        else "a folder cannot bear their names as they are"
    )
    log.info(
        "folders of %d of %d classes have other names, e.g. %r is in %r: %s; classes.json has the names",
        len(renamed),
        len(used),
        name,
        folder,
        why,
    )


def _webdataset(data: DistilledSet, source: Path, target: Path) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i, (name, image, label) in enumerate(zip(_names(data), data.images, data.labels.tolist(), strict=True)):
            facts: dict[str, Any] = {"label": label, "class": data.class_names[label]}
            facts |= {key: data.info[key] for key in ("draw", "draws") if "draws" in data.info}
            if data.soft_labels is not None:
                facts["soft_label"] = data.soft_labels[i].tolist()
            told = canonical_json(facts).encode()
            for suffix, content in (("cls", str(label).encode()), ("json", told), ("png", png_bytes(image))):
                entry = tarfile.TarInfo(f"{name.replace('/', '-')}.{suffix}")  # no clock, no user: the same bytes
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    write_bytes(target, sink.getvalue())


def _safetensors(data: DistilledSet, source: Path, target: Path) -> None:
    facts = read_json(source / "distilled.json")
    facts = {key: facts.get(key) for key in ("class_names", "dataset", "method", "name", "encoder", "settings")}
    facts |= {key: data.info[key] for key in ("draw", "draws") if "draws" in data.info}
    tensors = {"images": data.images.contiguous(), "labels": data.labels.to(torch.int64)}
    if data.soft_labels is not None:
        tensors["soft_labels"] = data.soft_labels.contiguous()
    write_bytes(target, save(tensors, metadata={"clpdd": canonical_json(facts)}))


FORMATS: dict[str, Callable[[DistilledSet, Path, Path], None]] = {
    "huggingface": _huggingface,
    "folder": _folder,
    "webdataset": _webdataset,
    "safetensors": _safetensors,
}
"""Form of ``export`` -> what writes it."""
