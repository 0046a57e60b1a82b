"""What a setting may be: the base of every section, and the domains that sections share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..catalogue.protocols import PROTOCOLS
from ..errors import SettingsError
from .explaining import explained

__all__ = [
    "Count",
    "NonNegativeReal",
    "OpenShare",
    "PerClass",
    "Positive",
    "PositiveReal",
    "Precision",
    "Protocol",
    "Section",
    "Share",
    "once",
]

Positive = Annotated[int, Field(ge=1, le=2**31)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
PerClass = Annotated[int, Field(ge=1, le=10_000)]
Precision = Literal["auto", "float32", "bfloat16"]
# type checkers take it for anything: they cannot know the catalogue
Protocol: Any = Literal.__getitem__(tuple(name for name, entry in PROTOCOLS.items() if entry.of_images))


class Section(BaseModel):
    """A part of the settings: unknown keys, wrong types, NaN and infinity are refused.

    Made by hand it raises ``SettingsError`` with the words that a settings file is refused with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(explained(error, type(self), type(self).__name__)) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """The section made of a mapping. Raises ``SettingsError``."""
        return cls.checked(obj, cls.__name__, **options)

    @classmethod
    def checked(cls, values: Any, source: str, text: str | None = None, **options: Any) -> Self:
        """``model_validate``, whose refusals name the ``source`` and show what its ``text`` says."""
        try:
            return super().model_validate(values, **options)
        except ValidationError as error:
            raise SettingsError(explained(error, cls, source, values, text)) from None

    # pydantic's own mark of an __init__ that only makes what validation would: sections within sections skip it
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def once(names: list[Any]) -> list[Any]:
    """``names``, or ``ValueError`` when one stands twice."""
    if len(set(names)) != len(names):
        raise ValueError(f"holds a name twice: {', '.join(map(str, names))}")
    return names
