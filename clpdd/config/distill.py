"""The section ``distill``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from ..errors import SettingsError
from .augment import AugmentSettings
from .domains import Count, NonNegativeReal, PerClass, Positive, PositiveReal, Precision, Section, Share

__all__ = ["TRIAL_STEPS", "TRIED", "DistillSettings"]


def _number_or_auto(value: object) -> object:
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"should be a number, or auto (got {value!r})")
    return value


_Auto = Annotated[Literal["auto"], Tag("[auto]")]
_KIND = Discriminator(lambda value: "[auto]" if value == "auto" else "[number]")
_WORD = BeforeValidator(_number_or_auto)

Searched = Literal["temperature", "ridge"]

TRIED: dict[Searched, tuple[float, ...]] = {"temperature": (0.02, 0.1, 0.2), "ridge": (1.0, 10.0)}
"""What CLP-DD tries besides the default where a setting is ``auto``, in this order."""

TRIAL_STEPS = 60
"""Steps of the short distillation that a value is tried with, at most."""


def _has_default(counts: dict[str, int]) -> dict[str, int]:
    if "default" not in counts:
        raise ValueError("a mapping needs default, the number of every class that it does not name")
    return counts


# The tags in brackets keep problems of the one form free of the other's: the explanation leaves them out.
PerClasses = Annotated[
    Annotated[PerClass, Tag("[one]")] | Annotated[dict[str, PerClass], AfterValidator(_has_default), Tag("[each]")],
    Discriminator(lambda value: "[each]" if isinstance(value, Mapping) else "[one]"),
]


class DistillSettings(Section):
    """How synthetic images are made (METHODS in ``clpdd.methods``)."""

    images_per_class: PerClasses = 1
    labels: Literal["hard", "learned", "probe"] = "hard"
    label_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.03
    steps: Positive = 600
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.03
    schedule: Literal["constant", "cosine"] = "cosine"
    objective: Literal["cross_entropy", "cosine", "mse"] = "cross_entropy"
    temperature: Annotated[Annotated[PositiveReal, Tag("[number]")] | _Auto, _KIND, _WORD] = 0.05
    ridge: Annotated[Annotated[NonNegativeReal, Tag("[number]")] | _Auto, _KIND, _WORD] = 3.0
    centre: Literal["real", "none"] = "real"
    outer_batch: Count = 4096
    own_share: Share = 1.0
    augmentations: Annotated[int, Field(ge=1, le=1000)] = 3
    augment: AugmentSettings = AugmentSettings()
    parameterisation: Literal["pyramid", "pixels"] = "pyramid"
    extend_every: Positive = 50
    decorrelate: bool = True
    initialisation: Literal["centroid", "medoids", "noise", "zero"] = "medoids"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    encoder_batch: Positive | None = None
    precision: Precision = "auto"
    compile: bool | Literal["auto"] = "auto"
    random_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    neighbor_of: Literal["clp", "lgm"] = "clp"
    keep: Literal["best", "last"] = "best"
    validate_every: Positive = 50
    preview_every: Positive = 100

    def number(self, name: Searched) -> float:
        """A setting that may be ``auto``; for that its default, which serves whoever does not search."""
        value = getattr(self, name)
        return float(type(self).model_fields[name].default if value == "auto" else value)

    @property
    def searched(self) -> list[Searched]:
        """The settings that CLP-DD chooses itself; the mean squared error has no temperature to choose."""
        of_use = [name for name in TRIED if name != "temperature" or self.objective != "mse"]
        return [name for name in of_use if getattr(self, name) == "auto"]

    @property
    def trial_steps(self) -> int:
        """Steps of the search for them, together, at most."""
        values = sum(len(TRIED[name]) for name in self.searched)
        return (1 + values) * min(TRIAL_STEPS, self.steps) if values else 0

    @property
    def most_per_class(self) -> int:
        """The most images any class has."""
        ipc = self.images_per_class
        return ipc if isinstance(ipc, int) else max(ipc.values())

    def per_class(self, class_names: Sequence[str]) -> list[int]:
        """Images of every class. Raises ``SettingsError`` when ``images_per_class`` names a class that is not there."""
        ipc = self.images_per_class
        if isinstance(ipc, int):
            return [ipc] * len(class_names)
        for name in ipc:
            if name != "default" and name not in class_names:
                near = difflib.get_close_matches(name, class_names, n=3)
                listed = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
                hint = f"near names: {', '.join(near)}" if near else f"classes are {listed}"
                raise SettingsError(f"distill.images_per_class names {name!r}, which is no class of the data; {hint}")
        return [ipc.get(name, ipc["default"]) for name in class_names]

    def images(self, classes: int) -> int:
        """Images of ``classes`` classes together."""
        ipc = self.images_per_class
        if isinstance(ipc, int):
            return classes * ipc
        return ipc["default"] * classes + sum(
            count - ipc["default"] for name, count in ipc.items() if name != "default"
        )
