"""The section ``encoder_options``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ..catalogue.encoders import KNOWN_ENCODERS, Features
from .domains import PositiveReal, Section

__all__ = ["EncoderOptions"]


class EncoderOptions(Section):
    """How to build one encoder; whatever is ``None`` comes from timm's own configuration of the model."""

    model_config = ConfigDict(use_attribute_docstrings=True)  # the reference of the settings shows them

    model: str | None = None
    """timm model name, or ``hf-hub:OWNER/NAME``; null takes the encoder's name"""
    weights: str | None = None
    """local safetensors file; null takes the model's pre-trained weights"""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """side of the input in pixels; null takes the model's own, ViTs resize their position embeddings"""
    features: Features = "default"
    """what of a ViT's output: what the model itself gives, its class token, its mean patch token, both joined, or, of a
    CLIP model, what its projection into the space of texts makes of it"""
    normalisation: Literal["own", "imagenet"] = "own"
    """mean and deviation of the pixels: the model's own, or ImageNet's, as published comparisons take for all"""
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """share of the resized shorter side that a centred crop keeps, 0.875: 224 of 256; null crops as the model does"""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """how real images are resized; null takes the model's own"""
    members: Annotated[dict[str, PositiveReal], Field(min_length=2)] | None = None
    """several encoders as one: two or more names, each with its weight in the loss; nothing else stands beside it, and
    real images are resized and cropped as the largest of them takes them"""

    @model_validator(mode="after")
    def _joint_alone(self) -> Self:
        optional = ("model", "weights", "image_size", "crop_pct", "interpolation")
        given = [name for name in optional if getattr(self, name) is not None]
        given += ["features"] if self.features != "default" else []
        given += ["normalisation"] if self.normalisation != "own" else []
        if self.members is not None and given:
            raise ValueError(
                f"{given[0]} is for a single encoder, and members makes a joint one: give it to the member that it is "
                f"meant for, under its own name in encoder_options"
            )
        return self

    def completed(self, name: str) -> EncoderOptions:
        """With what a short name of ``KNOWN_ENCODERS`` stands for, where it does and these options name no model.

        Raises ``SettingsError`` for an encoder whose weights must be brought and are not.
        """
        known = KNOWN_ENCODERS.get(name)
        if known is None or self.model is not None or self.members is not None:
            return self
        if self.weights is None:
            known.refuse_missing_weights(name)
        own = {"model": known.model, "image_size": known.image_size, "features": known.features}
        return EncoderOptions.model_validate(own | self.model_dump(exclude_unset=True, exclude_none=True))
