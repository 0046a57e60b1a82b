"""Settings for a folder of photos or Parquet files that is named on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config.loading import parse_settings
from ..config.placing import placed
from ..config.settings import Settings
from ..errors import DataError, SettingsError
from ..storage.files import write_bytes

__all__ = ["dataset_of", "settings_for", "with_encoder", "write_settings"]

_SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
_LENIENT = {"bad_images": "skip", "empty_classes": "drop", "duplicates": "drop"}


def dataset_of(photos: Path) -> dict[str, Any]:
    """The section ``dataset`` for ``photos``: what it is, where each split lies.

    - a folder of class folders: one root that is split;
    - a folder of ``train`` and ``test`` (``validation``, ``val``) folders and nothing else, each with class folders;
    - a Parquet file, or a folder of Parquet files, those of a split named ``train-...``, ``test-...``, if any are.

    Raises ``DataError`` for what is none of these.
    """
    if photos.is_file():
        if photos.suffix != ".parquet":
            raise DataError(f"{photos} is a file, but a folder of class folders or a .parquet is needed: unpack it")
        return {"name": "parquet", "train": str(photos)}
    if not photos.is_dir():
        raise DataError(f"{photos} does not exist: name a folder with one folder of images per class")
    below = [path for path in sorted(photos.iterdir()) if not path.name.startswith(".")]
    folders = {path.name for path in below if path.is_dir()}
    tables = [path.name for path in below if path.suffix == ".parquet"]
    if tables:
        return {"name": "parquet"} | _tables(photos, tables)
    if not folders:
        raise DataError(f"{photos} has no folders: put the images of each class into a folder named after the class")
    splits = {split: [name for name in names if name in folders] for split, names in _SPLITS.items()}
    known = [name for names in splits.values() for name in names]
    if splits["train"] and len(known) > 1 and set(known) == folders and all(len(n) < 2 for n in splits.values()):
        return {"name": "folder"} | {split: str(photos / names[0]) for split, names in splits.items() if names}
    return {"name": "folder", "train": str(photos)}


def _tables(photos: Path, names: list[str]) -> dict[str, list[str]]:
    """Split -> files; paths and not globs, because a folder's name may hold brackets."""
    found = {}
    for split, words in _SPLITS.items():
        own = [n for n in names if any(n == f"{word}.parquet" or n.startswith(f"{word}-") for word in words)]
        if own:
            found[split] = [str(photos / name) for name in own]
    return found if "train" in found else {"train": [str(photos / name) for name in names]}


def with_encoder(values: Any, encoder: str | None, given: Mapping[str, Any] | None = None) -> Any:
    """Values of a settings file with this encoder in place of its own; ``given`` are options of it, named beside it.

    Values that are none, and ``encoder=None``, come back as they are. Raises ``SettingsError`` where options are given
    and no encoder.
    """
    if encoder is None and given:
        raise SettingsError(f"--{next(iter(given)).replace('_', '-')} is of an encoder: name it with --encoder")
    if encoder is None or not isinstance(values, dict):
        return values
    options = values.get("encoder_options") or {}
    own = options.get(encoder) if isinstance(options, dict) else None
    kept = {encoder}
    if isinstance(own, dict):
        kept |= set(own.get("members") or ())
    changed = {name: own for name, own in options.items() if name in kept} if isinstance(options, dict) else options
    if given:
        changed = changed | {encoder: (own or {}) | dict(given)}
    return values | {
        "encoders": [encoder],
        "encoder_options": changed,
        "benchmark": (values.get("benchmark") or {}) | {"encoders": []},
    }


def settings_for(
    photos: Path | None, encoder: str | None, base: Settings | None, given: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of ``base`` (``None``: the defaults) with these images and this encoder in place of its own.

    ``given`` are options of the encoder, as in ``encoder_options``.

    Without a ``base``, images that cannot be read, those that a later split has too, and folders without an image are
    left out and told of, because there is no settings file in which to say so.

    Raises ``DataError`` and ``SettingsError``.
    """
    values = (base or Settings()).model_dump(mode="json", exclude_unset=True)
    if photos is not None:
        sources = dict.fromkeys(("root", "train", "validation", "test"))
        own = values.get("dataset", {}) if base is not None else dict(_LENIENT)
        title = own.get("title") or photos.resolve().name[:80] or "photos"
        values["dataset"] = own | sources | {"title": title, "download": False} | dataset_of(photos)
    return parse_settings(with_encoder(values, encoder, given), source="the settings for these images")


def write_settings(settings: Settings, path: Path) -> None:
    """Write what differs from the defaults, whole or not at all; its paths are relative to the folder of ``path``."""
    values = placed(settings, Path(), path.parent).model_dump(mode="json", exclude_defaults=True)
    head = "# Written by `clpdd run`: what differs from the defaults. Commands that find no params.yaml read it.\n"
    write_bytes(path, (head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).encode())
