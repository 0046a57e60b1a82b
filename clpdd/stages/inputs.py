"""The stage that always runs: what decides results and lies where DVC does not look, noted in small files.

Images, local weights, and the versions of timm and torch. ``data/inputs/dataset.json`` is what ``index`` depends on,
``data/inputs/encoders/ENCODER.json`` what the stages that encode depend on: unchanged inputs are the same bytes, and
nothing runs again. What has changed since the last time is named. In a clone DVC itself sees the package's code; where
the package is installed elsewhere, ``data/inputs/code`` tells of it, see ``stages.code``.

Torch is not imported: this takes about a second.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.settings import Settings
from ..datasets.listing import nearest_path
from ..datasets.watch import Seen, differences, look
from ..errors import ArtifactError, DataError
from ..storage.digests import RememberedDigests
from ..storage.files import canonical_json, read_json, remove, remove_leftovers, write_bytes, write_json
from ..storage.layout import Layout
from ..storage.work import exclusive
from .code import code_notes

__all__ = ["news_of_images", "remember_images", "run_inputs"]

log = logging.getLogger(__name__)

_DECIDING = ("timm", "torch")
"""Packages that decide features: other versions of them may encode an image otherwise."""


def run_inputs(settings: Settings, layout: Layout, base: Path = Path("."), code: bool = False) -> list[str]:
    """Write what is seen of the inputs below ``layout.root / "inputs"``; files that stay the same are not touched.

    Args:
        base: what the paths of the settings are relative to.
        code: note what decides each stage of the package's code and defaults, too.

    Returns:
        A line for each thing that has changed since the last time; they are logged as well.

    Raises:
        SettingsError: an encoder lacks weights that must be brought.
        ArtifactError: a local weights file or model folder does not exist; the encoder is named.
        DataError: a place that should hold images does not exist or holds no file; what was noted stays.
        DataError, ResourceError: images or weights cannot be read, the files cannot be written.
        BusyError: another live process is at it.
    """
    with exclusive(layout.work, "inputs", settings.runtime.wait_seconds):
        digests = RememberedDigests(layout.work / "inputs" / "digests.json")
        encoders = {name: _encoder(settings, name, base, digests) for name in settings.encoders}
        notes = code_notes(settings, digests) if code else {}
        digests.save()
        seen = look(settings.dataset, base, layout.made)
        memory, known = layout.work / "inputs" / "encoders.json", layout.work / "inputs" / "code.json"
        _refuse_nothing(seen, base)
        before = _recall(memory)
        lines = [*_said_of_encoders(before or {}, encoders), *news_of_images(layout, seen)]
        lines += _said_of_code(_recall(known) or {}, notes)
        _write(layout, {"dataset": settings.dataset.name, **seen.summary()}, encoders, notes)
        write_json(memory, encoders)
        if code:
            write_json(known, notes)
        remember_images(layout, seen)
    first = "inputs are noted" if before is None else "inputs are up to date"
    for line in lines or [f"{first}: {_told(seen, encoders)}"]:
        log.info("%s", line)
    return lines


def _refuse_nothing(seen: Seen, base: Path) -> None:
    for place, files in seen.places.items():
        path = base / Path(place).expanduser()
        if not files and path.exists():
            raise DataError(f"dataset: {place} holds no file: put the images there, or name another place")
        if not files:
            raise DataError(f"dataset: {place} does not exist{nearest_path(path, place)}")


# -- encoders ----------------------------------------------------------------------------------------------------------


def _encoder(settings: Settings, name: str, base: Path, digests: RememberedDigests) -> dict[str, Any]:
    """Versions, and the digest of each local file by the name that the settings give it, member by member."""
    weights: dict[str, dict[str, str]] = {}
    for member, options in settings.members(name).items():
        found = {}
        if options.weights is not None:
            found[options.weights] = digests.of(_existing(base, options.weights, member, "weights", Path.is_file))
        if options.model is not None and options.model.startswith("local-dir:"):
            place = options.model.removeprefix("local-dir:")
            folder = _existing(base, place, member, "model", Path.is_dir)
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    found[f"{place.rstrip('/')}/{file.name}"] = digests.of(file)
        if found:
            weights[member] = found
    return {"encoder": name, "versions": {package: _version(package) for package in _DECIDING}, "weights": weights}


def _existing(base: Path, place: str, encoder: str, option: str, there: Any) -> Path:
    path = base / Path(place).expanduser()
    if not there(path):
        raise ArtifactError(
            f"{path} does not exist: it is set by encoder_options.{encoder}.{option}; correct the path, or put the "
            f"{'file' if option == 'weights' else 'folder'} there"
        )
    return path


def _said_of_encoders(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name in [name for name in now if name in before]:
        old, new = before[name], now[name]
        for package, version in new["versions"].items():
            was = old["versions"].get(package, version)
            line = f"{package} was {was}, is {version}: what encodes with it runs again"
            if was != version and line not in lines:
                lines.append(line)
        for member, files in new["weights"].items():
            known = old["weights"].get(member, {})
            for file, digest in files.items():
                if known.get(file, digest) != digest:
                    lines.append(f"weights of encoder {member} changed: {file}")
    return list(dict.fromkeys(lines))


def _said_of_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each set of stages whose code has changed, with files of it."""
    stages: dict[tuple[str, ...], list[str]] = {}
    for name, note in now.items():
        old, new = before.get(name, note)["files"], note["files"]
        if files := tuple(sorted(file for file in old.keys() | new.keys() if old.get(file) != new.get(file))):
            stages.setdefault(files, []).append(name)
    told = (
        (files[:3], "" if len(files) <= 3 else f" and {len(files) - 3} more", names) for files, names in stages.items()
    )
    return [f"code of {', '.join(names)} changed: {', '.join(files)}{more}" for files, more, names in told]


# -- what was seen the last time ---------------------------------------------------------------------------------------


def _recall(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except ArtifactError:  # never written, or damaged: then nothing can be named
        return None
    return found if isinstance(found, dict) else None


def news_of_images(layout: Layout, now: Seen) -> list[str]:
    """A line for each place whose files have changed since ``remember_images``."""
    last = _recall(layout.work / "inputs" / "seen.json") or {}
    if last.get("digest") == now.digest() or last.get("watch") != now.watch:
        return []
    return differences(_recall(layout.work / "inputs" / "images.json") or {}, now.places)


def remember_images(layout: Layout, seen: Seen) -> None:
    """Keep the names and marks of all files, to name what has changed the next time."""
    path, note = layout.work / "inputs" / "images.json", {"digest": seen.digest(), "watch": seen.watch}
    if _recall(path.with_name("seen.json")) != note or not path.exists():
        write_bytes(path, json.dumps(seen.places).encode())  # ASCII: names need not be UTF-8
        write_json(path.with_name("seen.json"), note)


def _told(seen: Seen, encoders: Mapping[str, Any]) -> str:
    files = [f"{len(found)} files in {place}" for place, found in seen.places.items()]
    local = {file for encoder in encoders.values() for found in encoder["weights"].values() for file in found}
    weights = [f"weights in {', '.join(sorted(local))}"] if local else []
    return ", ".join([*files, *weights, *(f"{package} {_version(package)}" for package in _DECIDING)])


def _version(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]  # what follows names the build: +cpu, +cu130


def _write(
    layout: Layout, dataset: Mapping[str, Any], encoders: Mapping[str, Any], notes: Mapping[str, Mapping[str, Any]]
) -> None:
    wanted: dict[Path, Mapping[str, Any]] = {layout.dataset_inputs: dataset}
    wanted |= {layout.encoder_inputs(name): found for name, found in encoders.items()}
    wanted |= {layout.code_inputs(name): note for name, note in notes.items()}
    folder = layout.dataset_inputs.parent
    remove_leftovers(folder)
    for stray in [path for path in folder.rglob("*.json") if path not in wanted]:
        remove(stray)  # of an encoder or a method that is no longer among the settings
    for path, record in wanted.items():
        if not (path.is_file() and path.read_text(encoding="utf-8", errors="replace") == canonical_json(record)):
            write_json(path, record)
