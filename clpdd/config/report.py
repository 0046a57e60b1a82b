"""The section ``report``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .domains import Positive, Section

__all__ = ["ReportSettings"]


class ReportSettings(Section):
    """What the page shows."""

    images_per_row: Positive = 10
    max_classes: Annotated[int, Field(ge=2, le=1000)] = 20
