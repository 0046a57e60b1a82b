"""Names of models: of timm, of the Hugging Face hub, of a folder; unknown ones are answered with near ones."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path

import timm
from torch import nn

from ..catalogue.elsewhere import elsewhere
from ..catalogue.encoders import ARCHITECTURES
from ..errors import SettingsError

__all__ = ["SOURCES", "check_architecture", "own_module"]

SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
"""What stands before the name of a model that is not in timm's registry."""


def check_architecture(
    name: str, where: str = "encoders", others: Sequence[str] = (), *, weights_needed: bool = False
) -> None:
    """Refuse a name that no model is built from; make timm know those of our own.

    Args:
        name: a timm model, with or without the tag of its weights, or ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.
        where: the setting it stands in.
        others: further names that may have been meant.
        weights_needed: refuse models that timm has no weights for, too.

    Raises ``SettingsError`` that lists near names.
    """
    if name.startswith("local-dir:") and not (Path(name.removeprefix("local-dir:")) / "config.json").is_file():
        folder = name.removeprefix("local-dir:")
        raise SettingsError(f"{where}: the folder {folder!r} holds no config.json, which timm's models are saved with")
    known = name.split(".")[0]
    _register(known)
    if name.startswith(SOURCES):
        return
    if not timm.is_model(known):
        raise SettingsError(f"{where}: timm has no model named {name!r}; {_near(name, others)}")
    tagged = timm.list_pretrained(f"{known}.*")
    if "." in name:
        try:
            timm.models.get_pretrained_cfg(name)
        except RuntimeError:
            have = f"its weights are {', '.join(tagged)}" if tagged else f"it has none, leave the tag out: {known}"
            raise SettingsError(f"{where}: timm has no weights named {name!r} of {known}; {have}") from None
    if weights_needed and not timm.is_model_pretrained(known):
        raise SettingsError(
            f"{where}: timm has no weights for {name!r}; bring a safetensors file by "
            f"encoder_options: {{{known}: {{model: {name}, weights: path/to/file.safetensors}}}}, or take another model"
        )


def own_module(name: str, built: nn.Module) -> str:
    """Dotted name of this package's module that builds the model called ``name``; empty: timm's do."""
    registered = name.split(".")[0]
    if ":" in name:
        registered = str((getattr(built, "pretrained_cfg", None) or {}).get("architecture", ""))
    return ARCHITECTURES.get(registered, "")


def _near(name: str, others: Sequence[str]) -> str:
    known = elsewhere(name)
    if known is not None:
        return f"{known.where} calls so what is {known.name} here: write {known.name}"
    if "/" in name:
        return f"a model of the Hugging Face hub is named hf-hub:{name}, one in a folder local-dir:{name}"
    names = [*others, *ARCHITECTURES, *timm.list_models(), *timm.list_pretrained()]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    return f"near names: {', '.join(near)}" if near else "timm.list_models() lists them all"


def _register(name: str) -> None:
    """Make timm know an architecture of ours; of a repository, whose files alone say which it is, all of them."""
    for architecture, module in ARCHITECTURES.items():
        if name == architecture or ":" in name:
            importlib.import_module(module)
