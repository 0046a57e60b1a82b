"""Models of the papers by the names that other libraries have for them: what to answer such a name with."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["MODELS", "Elsewhere", "elsewhere"]


@dataclass(frozen=True)
class Elsewhere:
    """A model of the papers by the name that another library has for it.

    Attributes:
        name: what it is called here: a short name, or timm's.
        where: the library.
    """

    name: str
    where: str


MODELS: dict[str, dict[str, tuple[str, ...]]] = {
    "torch.hub": {
        "dinov2": ("dinov2_vitb14",),
        "vit_base_patch14_reg4_dinov2.lvd142m": ("dinov2_vitb14_reg",),
        "vit_small_patch14_dinov2.lvd142m": ("dinov2_vits14",),
        "vit_small_patch14_reg4_dinov2.lvd142m": ("dinov2_vits14_reg",),
        "vit_large_patch14_dinov2.lvd142m": ("dinov2_vitl14",),
        "vit_large_patch14_reg4_dinov2.lvd142m": ("dinov2_vitl14_reg",),
        "vit_giant_patch14_dinov2.lvd142m": ("dinov2_vitg14",),
        "vit_giant_patch14_reg4_dinov2.lvd142m": ("dinov2_vitg14_reg",),
        "dinov3": ("dinov3_vitb16",),
        "vit_small_patch16_dinov3.lvd1689m": ("dinov3_vits16",),
        "vit_large_patch16_dinov3.lvd1689m": ("dinov3_vitl16",),
        "vit_base_patch16_224.dino": ("dino_vitb16",),
        "vit_base_patch8_224.dino": ("dino_vitb8",),
        "vit_small_patch16_224.dino": ("dino_vits16",),
        "vit_small_patch8_224.dino": ("dino_vits8",),
    },
    "transformers": {
        "clip": ("clip-vit-base-patch16",),
        "vit_large_patch14_clip_224.openai": ("clip-vit-large-patch14",),
        "dinov2": ("dinov2-base",),
        "vit_small_patch14_dinov2.lvd142m": ("dinov2-small",),
        "vit_large_patch14_dinov2.lvd142m": ("dinov2-large",),
        "vit_giant_patch14_dinov2.lvd142m": ("dinov2-giant",),
        "vit_base_patch14_reg4_dinov2.lvd142m": ("dinov2-with-registers-base",),
        "dinov3": ("dinov3-vitb16-pretrain-lvd1689m",),
        "vit_small_patch16_dinov3.lvd1689m": ("dinov3-vits16-pretrain-lvd1689m",),
        "mae": ("vit-mae-base",),
        "siglip2": ("siglip2-base-patch16-224",),
        "vit_base_patch16_siglip_224.webli": ("siglip-base-patch16-224",),
        "vit_base_patch16_224.dino": ("dino-vitb16",),
        "vit_small_patch16_224.dino": ("dino-vits16",),
        "vit_base_patch16_224.augreg2_in21k_ft_in1k": ("vit-base-patch16-224",),
    },
    "open_clip": {
        "clip": ("ViT-B-16", "ViT-B/16", "ViT-B-16-quickgelu", "clip_vitb16", "clip_vit_b16"),
        "vit_base_patch32_clip_224.openai": ("ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu"),
        "vit_large_patch14_clip_224.openai": ("ViT-L-14", "ViT-L/14", "ViT-L-14-quickgelu"),
        "siglip2": ("ViT-B-16-SigLIP2",),
        "vit_base_patch16_siglip_224.webli": ("ViT-B-16-SigLIP",),
    },
    "the papers' code": {
        "mae": ("mae_vit_base_patch16", "mae_vit_base_patch16_dec512d8b"),
        "mocov3": ("moco_v3", "moco-v3", "moco_vit_base", "mocov3_vitb16", "moco_v3_vitb16"),
        "eva02": ("eva02_vitb14", "eva02_base_patch14_xattn_fusedLN_SwiGLU_preln_RoPE"),
        "clip": ("CLIP-ViT-B/16",),
        "vit_base_patch32_clip_224.openai": ("clip_vitb",),  # LGM's: its code means ViT-B/32 by it
    },
}
"""Library -> what a model is called here -> what it is called there, on the hub without its owner."""

_OWNER = re.compile("^(facebook|google|openai)/")


def elsewhere(name: str) -> Elsewhere | None:
    """What a model is called here that other libraries call ``name``, in any case, with or without its owner."""
    wanted = _bare(name)
    for where, models in MODELS.items():
        for here, theirs in models.items():
            if wanted in map(_bare, theirs):
                return Elsewhere(here, where)
    return None


def _bare(name: str) -> str:
    return _OWNER.sub("", name.removeprefix("hf-hub:").lower()).replace("_", "-")
