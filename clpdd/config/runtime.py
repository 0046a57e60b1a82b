"""The section ``runtime``: where and how to compute. It decides no result, and no digest of code covers it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .domains import NonNegativeReal, Positive, PositiveReal, Section

__all__ = ["RuntimeSettings"]


class RuntimeSettings(Section):
    """Where and how to compute; never what."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    features: Literal["auto", "device", "host", "stream"] = "auto"
    state: Literal["auto", "device", "host"] = "auto"
    memory: NonNegativeReal = 0
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    checkpoint_every_steps: Positive = 100
    checkpoint_every_seconds: PositiveReal = 60
    deterministic: bool = True
    wait_seconds: NonNegativeReal = 0
