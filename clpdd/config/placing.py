"""Paths in a settings file are relative to the folder of the file, wherever a command is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .settings import Settings

__all__ = ["placed"]

_LOCAL = "local-dir:"


def placed(settings: Settings, folder: Path, at: Path = Path()) -> Settings:
    """``settings`` with paths relative to ``folder``, with their paths relative to ``at``, where these are two.

    They stay relative, so that an index which names files can be moved along with these. Absolute paths stay as they
    are; in ``encoder_options`` a leading ``~`` is expanded (a dataset's is where it is read).
    """
    here, there = os.path.realpath(at), os.path.realpath(folder)

    def place(path: str) -> str:
        if here == there or path.startswith("~") or os.path.isabs(path):
            return path
        whole = os.path.join(there, path)
        short = os.path.relpath(whole, here)
        same = os.path.realpath(whole) == os.path.realpath(os.path.join(here, short))
        return short if same else os.path.join(os.path.relpath(there, here), path)  # ".." after a link leads elsewhere

    encoders = {
        name: own.model_copy(update=_encoder(own.model, own.weights, place))
        for name, own in settings.encoder_options.items()
    }
    dataset: dict[str, Any] = {}
    for key in ("root", "train", "validation", "test"):
        value = getattr(settings.dataset, key)
        if value is not None:
            dataset[key] = place(value) if isinstance(value, str) else [place(item) for item in value]
    kind, _, rest = settings.dataset.name.partition(":")
    if kind == "hf" and here != there and (folder / rest).is_dir():  # a folder of the user's own, not a name on the hub
        dataset |= {"name": f"{kind}:{place(rest)}", "title": settings.dataset.title or settings.dataset.name}
    return settings.model_copy(
        update={"encoder_options": encoders, "dataset": settings.dataset.model_copy(update=dataset)}
    )


def _encoder(model: str | None, weights: str | None, place: Callable[[str], str]) -> dict[str, str]:
    changed: dict[str, str] = {}
    if weights is not None:
        changed["weights"] = place(os.path.expanduser(weights))
    if model is not None and model.startswith(_LOCAL):
        changed["model"] = _LOCAL + place(os.path.expanduser(model.removeprefix(_LOCAL)))
    return changed
