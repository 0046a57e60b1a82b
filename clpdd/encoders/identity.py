"""A digest that tells frozen models apart by what they compute, not by how a library prints them."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from ..storage.files import compact_json

__all__ = ["model_digest"]

# Numbers that change what a layer computes and leave the shapes of its weights as they are. Others that a library
# writes beside them, such as which kernel it takes, decide nothing or differ between versions.
_DECIDING = (
    "align_corners",
    "alpha",
    "approximate",
    "attn_gain",
    "beta",
    "ceil_mode",
    "count_include_pad",
    "dilation",
    "dim",
    "dynamic_img_pad",
    "end_dim",
    "eps",
    "feat_shape",
    "filt_size",
    "gamma",
    "global_pool",
    "grid_offset",
    "groups",
    "in_pixels",
    "kernel_size",
    "lambd",
    "layer_scale",
    "lower",
    "max_res",
    "max_val",
    "min_val",
    "mode",
    "negative_slope",
    "norm_first",
    "num_groups",
    "num_heads",
    "num_kv_heads",
    "num_prefix_tokens",
    "num_splits",
    "output_padding",
    "output_size",
    "padding",
    "padding_mode",
    "patch_size",
    "pool_type",
    "ref_feat_shape",
    "rotate_half",
    "scale",
    "scale_factor",
    "shift_size",
    "skipinit_gain",
    "start_dim",
    "stride",
    "temperature",
    "threshold",
    "upper",
    "upscale_factor",
    "value",
    "window_size",
)

_IDLE = ("DropPath", "Dropout", "Identity")  # versions differ in where they put them


def model_digest(model: nn.Module, *chosen: str) -> str:
    """SHA-256 over the layers of a model and its weights.

    Layers are their names, the names of their classes and the numbers that decide what they compute; weights are the
    names, shapes, dtypes and bytes of parameters and persistent buffers.

    Args:
        chosen: further words that tell apart, such as which of its outputs is taken.

    Returns:
        64 hex digits. How a module prints itself does not enter: libraries change that between versions.
    """
    digest = hashlib.sha256(compact_json(_layers(model)).encode())
    for key, value in sorted(model.state_dict().items()):
        raw = value.detach().cpu().contiguous()
        digest.update(f"{key}{tuple(raw.shape)}{raw.dtype}".encode())
        digest.update(raw.reshape(-1).view(torch.uint8).numpy())
    for word in chosen:
        digest.update(word.encode())
    return digest.hexdigest()


def _layers(model: nn.Module) -> list[list[object]]:
    """Name, class and deciding numbers of every layer that does something in evaluation."""
    found = ((name, type(layer).__name__, layer) for name, layer in model.named_modules())
    return [[name, kind, _numbers(layer)] for name, kind, layer in found if kind not in _IDLE]


def _numbers(layer: nn.Module) -> dict[str, object]:
    """Those that are set: what is off or zero is left out, as a version leaves it out that does not know it yet."""
    known = ((name, vars(layer).get(name)) for name in _DECIDING)
    return {name: _same(value) for name, value in known if _plain(value) and value}


def _plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _same(value: object) -> object:
    """10000.0 as 10000: versions differ in which of them they write."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
