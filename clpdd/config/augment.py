"""How views are augmented: one section for distillation, one for probes."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .domains import NonNegativeReal, PositiveReal, Section, Share

__all__ = ["AugmentSettings"]


class AugmentSettings(Section):
    """Differentiable augmentation (DSA); every piece can be switched off."""

    flip: Share = 0.5
    crop: bool = True
    crop_area: Annotated[list[PositiveReal], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    crop_aspect: Annotated[list[PositiveReal], Field(min_length=2, max_length=2)] = [3 / 4, 4 / 3]
    noise: Share = 0.0
    noise_mean: float = 0.5
    noise_std: NonNegativeReal = 0.2

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}], but the first number must not exceed the second")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area ends at {self.crop_area[1]}, but a crop covers at most the whole image (1.0)")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.crop or self.flip > 0 or self.noise > 0

    def without_noise(self) -> AugmentSettings:
        """Flip and crop alone, as the evaluation protocols use them."""
        return self.model_copy(update={"noise": 0.0})
