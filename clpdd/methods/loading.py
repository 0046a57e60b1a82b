"""A method by its name in the catalogue."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..catalogue.methods import METHODS
from ..errors import SettingsError
from ..optimise.context import Method

if TYPE_CHECKING:
    from ..config.distill import DistillSettings

__all__ = ["load_method", "module_of", "modules_of"]


def load_method(name: str) -> Method:
    """Import and make the method called ``name``. Raises ``SettingsError`` for one that the catalogue has not."""
    module, _, kind = _implementation(name).partition(":")
    made: Method = getattr(importlib.import_module(module), kind)()
    return made


def module_of(name: str) -> str:
    """The dotted name of the module that implements a method: where ``code_digest`` starts for it."""
    return _implementation(name).partition(":")[0]


def modules_of(name: str, settings: DistillSettings) -> tuple[str, ...]:
    """The dotted names of all modules that implement a method: its own, and its source's where it has one."""
    source = METHODS[name].source
    return (module_of(name), *([module_of(getattr(settings, source))] if source else []))


def _implementation(name: str) -> str:
    if name not in METHODS:
        raise SettingsError(f"methods: unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name].implementation
