"""What a setting may be: the base of every section, and the domains that sections share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..catalogue.protocols import PROTOCOLS
from ..errors import SettingsError
from ..runtime.notebook import html_table
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

    def changed(self, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
        """(dotted key, value, default) of every setting that differs from its default."""
        for name, known in type(self).model_fields.items():
            value, default = getattr(self, name), known.get_default(call_default_factory=True)
            if isinstance(value, Section) and isinstance(default, Section):
                yield from value.changed(f"{prefix}{name}.")
            elif value != default:
                yield f"{prefix}{name}", value, default

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        fields = type(self).model_fields
        return [(n, getattr(self, n)) for n, f in fields.items() if getattr(self, n) != f.default]

    def _repr_html_(self) -> str:
        rows = [(key, str(value), str(default)) for key, value, default in self.changed()]
        name = type(self).__name__
        if not rows:
            return f"<p>{name}: the defaults</p>"
        return html_table(("setting", "value", "default"), rows, f"{name}: what differs from the defaults")

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
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # functions have no such attribute otherwise


def once(names: list[Any]) -> list[Any]:
    """``names``, or ``ValueError`` when one stands twice."""
    if len(set(names)) != len(names):
        raise ValueError(f"holds a name twice: {', '.join(map(str, names))}")
    return names
