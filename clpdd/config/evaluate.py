"""The section ``evaluate``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from ..catalogue.protocols import PROTOCOLS
from .augment import AugmentSettings
from .domains import Count, Positive, PositiveReal, Precision, Protocol, Section, once

__all__ = ["EvaluateSettings"]


class EvaluateSettings(Section):
    """Probe protocols (``clpdd.probe``)."""

    protocols: Annotated[list[Protocol], Field(min_length=1), AfterValidator(once)] = ["sgd", "closed_form"]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    epochs: Positive = 1000
    learning_rate: PositiveReal = 1e-3
    views: Count = 100
    augment: AugmentSettings = AugmentSettings()
    ridge: PositiveReal = 1.0
    encoder_batch: Positive = 256
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _some_for_every_encoder(self) -> Self:
        if all(PROTOCOLS[name].across for name in self.protocols):
            raise ValueError(
                f"protocols holds {', '.join(self.protocols)} alone, for encoders other than the one distilled with: "
                f"add one for that one too, e.g. sgd"
            )
        return self
