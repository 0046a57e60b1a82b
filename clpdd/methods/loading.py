"""A method by its name in the catalogue."""

from __future__ import annotations

import importlib

from ..catalogue.methods import METHODS
from ..errors import SettingsError
from ..optimise.context import Method

__all__ = ["load_method", "module_of"]


def load_method(name: str) -> Method:
    """Import and make the method called ``name``. Raises ``SettingsError`` for one that the catalogue has not."""
    module, _, kind = _implementation(name).partition(":")
    made: Method = getattr(importlib.import_module(module), kind)()
    return made


def module_of(name: str) -> str:
    """The dotted name of the module that implements a method: where ``code_digest`` starts for it."""
    return _implementation(name).partition(":")[0]


def _implementation(name: str) -> str:
    if name not in METHODS:
        raise SettingsError(f"methods: unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name].implementation
