"""What decides each stage besides files of the project: the package's own code, and settings with their defaults.

A clone lists its sources in ``dvc.yaml``. A project that uses an installed package has none to list: there the first
stage notes this, and every other stage depends on its own note, so that an upgrade starts those alone that it concerns.

Torch is not imported: modules are found by name in the catalogue and read as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..catalogue.encoders import ARCHITECTURES
from ..catalogue.methods import METHODS
from ..catalogue.protocols import PROTOCOLS
from ..config.settings import Settings
from ..datasets.sources.loading import module_of
from ..storage.digests import RememberedDigests
from ..storage.provenance import PACKAGE, code_files

__all__ = ["DECIDING", "code_notes"]

DECIDING: dict[str, tuple[str, ...]] = {
    "index": ("seed", "dataset"),
    "cache": ("encoder_options", "precision", "cache"),
    "kernels": ("kernels",),
    "distill": ("seed", "encoder_options", "precision"),
    "evaluate": ("seed", "encoders", "encoder_options", "precision", "methods", "evaluate"),
    "report": (
        "seed",
        "dataset",
        "encoders",
        "encoder_options",
        "precision",
        "cache",
        "kernels",
        "methods",
        "distill",
        "evaluate",
        "report",
    ),
}
"""Stage -> the settings that decide it, as ``params`` in ``dvc.yaml`` says to DVC, which does not see defaults.

Those of ``variants`` and ``distill`` that decide a distillation are in its own note: few concern all methods.
"""

_CATALOGUES = {
    "index": ("datasets",),
    "cache": ("encoders",),
    "distill": ("methods", "encoders"),
    "evaluate": ("protocols", "encoders"),
    "report": ("methods", "protocols"),
}

_LOADED = ("clpdd.encoders.loading",)
_UNSEEN = {"cache": _LOADED, "distill": _LOADED, "evaluate": _LOADED}
"""Stage -> modules that act on it through what its fingerprint holds of the encoder, which nobody else sees change."""


def code_notes(settings: Settings, digests: RememberedDigests) -> dict[str, dict[str, Any]]:
    """A note for every stage, ``distill/METHOD`` for every method.

    Returns:
        Name -> ``{"files": {path in the package: hex SHA-256}, "settings": {name: value}}``. The files hold all that
        ``code_digest`` covers for any run of the stage with these settings, the entries of catalogues, and the
        shipped weights of the encoders that are used. That of a distillation has ``variant`` as well: its method and
        the settings that decide its result.

    Raises:
        SettingsError: an encoder lacks weights that must be brought.
        ResourceError: a file cannot be read.
    """
    values = settings.model_dump(mode="json")
    modules, weights = _encoding(settings)
    named = {
        "index": [module_of(settings.dataset.name)],
        "cache": modules,
        "kernels": [],
        **{f"distill/{name}": [*modules, *_implementing(settings, name)] for name in settings.methods},
        "evaluate": [*modules, *(entry.implementation for entry in PROTOCOLS.values())],
        "report": [],
    }
    notes = {}
    for name, found in named.items():
        stage = name.partition("/")[0]
        files = code_files(f"clpdd.stages.{stage}", *found, *_UNSEEN.get(stage, ()))
        files += [f"catalogue/{catalogue}.py" for catalogue in _CATALOGUES.get(stage, ())]
        files += weights if stage in ("cache", "distill", "evaluate") else []
        notes[name] = {
            "files": {file: digests.of(PACKAGE / file) for file in sorted(files)},
            "settings": {key: values[key] for key in DECIDING[stage]},
        }
        if stage == "distill":  # with what the package itself says of a variant that it brings
            variant = settings.variant(name.partition("/")[2])
            notes[name]["variant"] = {"method": variant.method, **variant.deciding}
    return notes


def _implementing(settings: Settings, name: str) -> Iterator[str]:
    """Modules of a method in ``methods``, and of the one whose set it is given."""
    variant = settings.variant(name)
    source = METHODS[variant.method].source
    for method in (variant.method, *([getattr(variant.settings, source)] if source else [])):
        yield METHODS[method].implementation.partition(":")[0]


def _encoding(settings: Settings) -> tuple[list[str], list[str]]:
    """Modules of the encoders in ``encoders``, and the files of shipped weights that these may load."""
    modules, weights = ["clpdd.encoders.encoder"], []
    for name in settings.encoders:
        members = settings.members(name)
        if len(members) > 1:
            modules.append("clpdd.encoders.joint")
        for member, options in members.items():
            architecture = (options.model or member).partition(".")[0]
            if architecture in ARCHITECTURES:
                modules.append(ARCHITECTURES[architecture])
                files = (PACKAGE / "weights").glob(f"{architecture}.*.safetensors")
                weights += [file.relative_to(PACKAGE).as_posix() for file in files]
    return list(dict.fromkeys(modules)), list(dict.fromkeys(weights))
