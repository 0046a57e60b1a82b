"""Named variants of the methods: a method and the ``distill`` settings in which it differs.

A name in ``methods`` is one of ``BUILT_IN`` or of the user's own ``variants``. Everything a variant leaves unsaid comes
from ``distill``, so that a difference between two variants is the difference between them that is written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, create_model
from pydantic.fields import FieldInfo

from ..catalogue.methods import METHODS
from ..errors import SettingsError
from .distill import DistillSettings
from .domains import Section
from .merging import merged

__all__ = ["BUILT_IN", "MethodVariant", "Variant", "resolve"]


_NO_DSA: dict[str, Any] = {"augmentations": 1, "augment": {"flip": 0.0, "crop": False, "noise": 0.0}}

# LGM as published (arXiv 2511.16674): rate, schedule, start, pyramid, views and the noise piece of its augmentation.
# Crops and flips stay those of `distill.augment`, which fit the dataset.
_LGM: dict[str, Any] = {
    "method": "lgm",
    "steps": 5000,
    "learning_rate": 2e-3,
    "schedule": "constant",
    "augmentations": 10,
    "augment": {"noise": 0.5},
    "initialisation": "noise",
    "extend_every": 200,
    "keep": "last",
}

# SFM as published (arXiv 2602.05391): LGM's harness with one view a step.
_SFM: dict[str, Any] = _LGM | {"augmentations": 1}

BUILT_IN: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "clp-mse": {"method": "clp", "objective": "mse"},
    "clp-cosine": {"method": "clp", "objective": "cosine"},
    "clp-no-dsa": {"method": "clp", **_NO_DSA},
    "lgm": _LGM,
    "lgm-no-dsa": _LGM | _NO_DSA,
    "sfm": _SFM | {"method": "sfm"},
    "sfm-decouple": _SFM | {"method": "sfm-decouple"},
}
"""Name -> method and overrides of ``DistillSettings``."""


def _constrained(field: FieldInfo) -> Any:
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


_FIELDS: dict[str, Any] = {
    "method": (
        Literal.__getitem__(tuple(METHODS)),
        Field(None, description="what it is a variant of; only built-in variants may leave it out"),
    ),
    **{name: (_constrained(field), None) for name, field in DistillSettings.model_fields.items()},
}

Variant: Any = create_model(
    "Variant",
    __base__=Section,
    __doc__="A method and the fields of ``distill`` in which it differs; what is left out comes from there.",
    **_FIELDS,
)


@dataclass(frozen=True)
class MethodVariant:
    """A method as it runs: what the result is called, the method's name in the catalogue, and its settings."""

    name: str
    method: str
    settings: DistillSettings

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that decide its result, as JSON values: all but those that the method has no use for."""
        unused = METHODS[self.method].unused
        if self.settings.labels == "probe" and "labels" not in unused:
            unused = tuple(name for name in unused if name != "temperature")  # of the probe's predictions
        return self.settings.model_dump(mode="json", exclude=set(unused))


def resolve(name: str, base: DistillSettings, own: Section | None = None) -> MethodVariant:
    """The method called ``name`` and its settings: ``base``, then the built-in variant, then the user's ``own``.

    Raises ``SettingsError`` for an unknown name, or one of the user's without a method.
    """
    changes = merged(BUILT_IN.get(name, {}), own.model_dump(exclude_unset=True) if own is not None else {})
    method = changes.pop("method", None)
    if method is None:
        raise SettingsError(f"methods: unknown method {name!r}; known are {', '.join(BUILT_IN)}")
    return MethodVariant(name, method, DistillSettings.model_validate(merged(base.model_dump(), changes)))
