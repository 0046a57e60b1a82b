"""What one image costs the encoders of the presets: counted once, so that presets are listed without building models.

An encoder that is not listed is counted when it is asked for. ``tests/test_presets.py`` counts those listed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COUNTED", "Pass"]


@dataclass(frozen=True)
class Pass:
    """One image through an encoder.

    Attributes:
        macs: multiply-accumulates of a forward pass; back into the pixels costs as many again.
        activations: bytes that are kept for the way back.
        weights: bytes of the parameters.
        dim: features per image.
        size: side of the input in pixels, of one that is not square the longer one.
    """

    macs: float
    activations: int
    weights: int
    dim: int
    size: int


COUNTED: Mapping[tuple[str, int | None], Pass] = {
    ("clpdd_resnet14", None): Pass(31_805_440, 1_862_624, 5_901_296, 768, 64),
    ("vit_base_patch16_clip_224.openai", None): Pass(17_563_060_224, 104_091_728, 343_197_696, 768, 224),
    ("vit_base_patch14_dinov2.lvd142m", 224): Pass(23_161_227_264, 143_701_768, 342_899_712, 768, 224),
    ("vit_base_patch16_dinov3.lvd1689m", 224): Pass(17_932_142_592, 106_137_416, 342_564_864, 768, 224),
    ("eva02_base_patch14_224.mim_in22k", None): Pass(23_161_227_264, 187_150_184, 343_034_880, 768, 224),
    ("vit_base_patch16_224.mae", None): Pass(17_563_060_224, 103_484_968, 343_194_624, 768, 224),
    ("vit_base_patch16_224.dino", None): Pass(17_563_060_224, 103_484_968, 343_194_624, 768, 224),
    ("vit_base_patch16_siglip_224.v2_webli", None): Pass(17_708_292_096, 104_081_896, 371_536_896, 768, 224),
}
"""By timm name and the side that the settings ask for."""
