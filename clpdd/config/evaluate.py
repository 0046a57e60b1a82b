"""The section ``evaluate``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

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
