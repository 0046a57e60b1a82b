"""Encoders by short names, and architectures of our own: the one place to enter a new one.

Any model of timm is known by its own name and needs no entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import SettingsError

__all__ = ["ARCHITECTURES", "KNOWN_ENCODERS", "Features", "KnownEncoder"]

Features = Literal["default", "class_token", "mean_patch", "both", "projected"]


@dataclass(frozen=True)
class KnownEncoder:
    """What a short name stands for.

    Attributes:
        model: timm name, or ``hf-hub:OWNER/NAME``.
        note: what it is.
        image_size: side of the input in pixels; ``None``: the model's own.
        features: what of a transformer's tokens is taken.
        own_weights: whether weights must be brought as a file, because ``model`` would load those of another.
    """

    model: str
    note: str
    image_size: int | None = None
    features: Features = "default"
    own_weights: bool = False

    def refuse_missing_weights(self, name: str) -> None:
        """Raise ``SettingsError`` where the encoder called ``name`` needs weights of its own: none were brought."""
        if self.own_weights:
            raise SettingsError(
                f"encoder_options.{name}.weights is needed: {self.model}, which {name} is built as, has other weights "
                f"({self.note}); give a safetensors file"
            )


ARCHITECTURES: dict[str, str] = {
    "clpdd_resnet14": "clpdd.encoders.architectures",
}
"""Architectures that timm has not -> the module that registers them with timm; imported when one is asked for."""

KNOWN_ENCODERS: dict[str, KnownEncoder] = {
    "clip": KnownEncoder("vit_base_patch16_clip_224.openai", "CLIP ViT-B/16 of OpenAI: class token"),
    "dinov2": KnownEncoder("vit_base_patch14_dinov2.lvd142m", "DINO-v2 ViT-B/14, not at its native 518 pixels", 224),
    "eva02": KnownEncoder("eva02_base_patch14_224.mim_in22k", "EVA-02 ViT-B/14: mean of the patches"),
    "mocov3": KnownEncoder(
        "vit_base_patch16_224.dino", "MoCo-v3 ViT-B/16: its weights under timm's names", own_weights=True
    ),
    "dinov3": KnownEncoder(
        "vit_base_patch16_dinov3.lvd1689m", "DINO-v3 ViT-B/16: class token, not timm's mean", 224, "class_token"
    ),
    "siglip2": KnownEncoder("vit_base_patch16_siglip_224.v2_webli", "SigLIP-2 ViT-B/16: its attention pooling"),
    "mae": KnownEncoder("vit_base_patch16_224.mae", "MAE ViT-B/16: class token"),
}
"""The papers' four ViT-B and their successors. Names that are not here are timm's."""
