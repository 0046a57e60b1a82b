"""Other names for the same weights: prefixes that training wraps around a model, and those of ``transformers``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

__all__ = ["PREFIXES", "renamed", "shared_prefixes"]

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "teacher.backbone.", "vit.", "vision_model.")
"""Set before every name by data parallelism, ``torch.compile``, wrappers, and self-supervised training."""

_State = dict[str, Tensor]

# Names of a transformer's parts outside its blocks: those of ``transformers`` on the left, timm's on the right.
_OUTSIDE = (
    (r"embeddings\.(cls_token|class_embedding)", "cls_token"),
    (r"embeddings\.(position_embeddings|position_embedding\.weight)", "pos_embed"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.mask_token", "mask_token"),
    (
        r"embeddings\.(patch_embeddings\.projection|patch_embedding|patch_embeddings)\.(weight|bias)",
        r"patch_embed.proj.\2",
    ),
    (r"(layernorm|post_layernorm|norm)\.(weight|bias)", r"norm.\2"),
    (r"pre_layrnorm\.(weight|bias)", r"norm_pre.\1"),
)
# and inside of block N, after ``encoder.layer.N.``, ``encoder.layers.N.``, ``layers.N.`` or ``layer.N.``
_INSIDE = (
    (r"(attention\.attention|self_attn|attention)\.(query|q_proj)\.(weight|bias)", r"attn.q.\3"),
    (r"(attention\.attention|self_attn|attention)\.(key|k_proj)\.(weight|bias)", r"attn.k.\3"),
    (r"(attention\.attention|self_attn|attention)\.(value|v_proj)\.(weight|bias)", r"attn.v.\3"),
    (r"(attention\.output\.dense|self_attn\.out_proj|attention\.o_proj)\.(weight|bias)", r"attn.proj.\2"),
    (r"(norm1|layernorm_before|layer_norm1)\.(weight|bias)", r"norm1.\2"),
    (r"(norm2|layernorm_after|layer_norm2)\.(weight|bias)", r"norm2.\2"),
    (r"(mlp\.fc1|intermediate\.dense|mlp\.up_proj)\.(weight|bias)", r"mlp.fc1.\2"),
    (r"(mlp\.fc2|output\.dense|mlp\.down_proj)\.(weight|bias)", r"mlp.fc2.\2"),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
)
_BLOCK = re.compile(r"(?:encoder\.|model\.)?layers?\.(\d+)\.(.*)")


def shared_prefixes(state: Mapping[str, object]) -> Iterator[str]:
    """What all names begin with, up to a dot, the shortest first: of ``a.b.c`` and ``a.b.d`` it is ``a.``, ``a.b.``."""
    if not state:
        return
    first = next(iter(state)).split(".")[:-1]
    for count in range(1, len(first) + 1):
        prefix = ".".join(first[:count]) + "."
        if not all(name.startswith(prefix) for name in state):
            return
        yield prefix


def renamed(state: Mapping[str, Tensor]) -> _State | None:
    """Weights of a vision transformer of ``transformers`` (ViT, MAE, DINO, DINO-v2, CLIP) by timm's names.

    Queries, keys and values are joined as timm's models hold them. ``None`` where a name is not one of theirs.
    """
    out: _State = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        own = _translated(block[2], _INSIDE) if block else _translated(name, _OUTSIDE)
        if own is None:
            if _dispensable(name):
                continue
            return None
        own = f"blocks.{block[1]}.{own}" if block else own
        joined = re.fullmatch(r"(.*\.attn)\.([qkv])\.(weight|bias)", own)
        if joined:
            parts.setdefault(f"{joined[1]}.qkv.{joined[3]}", {})[joined[2]] = value
        else:
            out[own] = _shaped(own, value)
    for name, three in parts.items():
        if set(three) != set("qkv"):
            return None
        out[name] = torch.cat([three[part] for part in "qkv"])
    return out


def _translated(name: str, pairs: tuple[tuple[str, str], ...]) -> str | None:
    for theirs, ours in pairs:
        found = re.fullmatch(theirs, name)
        if found:
            return found.expand(ours)
    return None


def _dispensable(name: str) -> bool:
    """Parts that decide no feature of an image: numbers of positions, and the pooling head that ViTModel adds."""
    return name.endswith("embeddings.position_ids") or name.startswith("pooler.dense.")


def _shaped(name: str, value: Tensor) -> Tensor:
    """CLIP's class token ``(d,)`` and positions ``(n, d)`` as ``(1, 1, d)`` and ``(1, n, d)``."""
    if name == "cls_token" and value.ndim == 1:
        return value[None, None]
    if name == "pos_embed" and value.ndim == 2:
        return value[None]
    return value
