"""What a setting may be: the base of every section, and the domains that sections share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..catalogue.protocols import PROTOCOLS

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
    """A part of the settings: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def once(names: list[Any]) -> list[Any]:
    """``names``, or ``ValueError`` when one stands twice."""
    if len(set(names)) != len(names):
        raise ValueError(f"holds a name twice: {', '.join(map(str, names))}")
    return names
