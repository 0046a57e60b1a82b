"""Which model of a module is tried, and the trial in a process of its own."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch

from clpdd.encoders.building import REFUSALS

from .checks import Model, Row, try_model

__all__ = ["sweep"]

_LARGE = ("giant", "gigantic", "huge", "large", "enormous", "so400m", "_7b", "_5b", "_1b")
_SHORTENED = 150_000_000  # parameters above which only two blocks are built, where a model takes ``depth``


def _parameters(name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters())
    except REFUSALS:
        return float("inf")


def _smallest(module: str) -> Model:
    names = timm.list_models(module=module)
    names = [name for name in names if not any(word in name for word in _LARGE)] or names
    counted = sorted((_parameters(name), name) for name in names)
    count, name = counted[0]
    arguments = {"depth": 2} if _SHORTENED < count < float("inf") else {}
    larger = tuple(other for size, other in counted[1:] if count < size < _SHORTENED)
    return Model(module, name, arguments, larger[:20])


def sweep(module: str) -> tuple[Row, float]:
    """What came of a module's smallest model, and the seconds it took."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        return try_model(_smallest(module), Path(folder)), time.monotonic() - begun
