"""What installed packages lack that tests need: these are skipped by what is missing, not by a number."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pyarrow as pa
import pytest
import timm
import torch
from pyarrow import parquet
from timm.data import create_transform
from timm.models import _hub as hub
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

__all__ = [
    "counts_attention",
    "need_exporter",
    "need_hub",
    "need_model",
    "need_oblong_interpolation",
    "need_oblong_positions",
    "need_views",
]


def need_model(name: str) -> None:
    """Skip where timm is older than the architecture ``name``, whose tag does not matter."""
    if not timm.is_model(name.partition(".")[0]):
        pytest.skip(f"timm {timm.__version__} is older than {name}")


def need_hub() -> None:
    """Skip where timm does not find the ``huggingface_hub`` that is installed, since it is newer than timm knows."""
    if not hub.has_hf_hub():
        pytest.skip(f"timm {timm.__version__} does not find this huggingface_hub")


def need_exporter() -> None:
    """Skip where torch 2.8 meets an ``onnx-ir`` that is newer than its exporter to ONNX knows."""
    if torch.__version__.startswith("2.8.") and not metadata.version("onnx-ir").startswith("0.1."):
        pytest.skip("torch 2.8 writes no ONNX with onnx-ir 0.2 or newer")


def need_oblong_interpolation(size: tuple[int, int]) -> None:
    """Skip where timm resizes for inputs that are not square by another interpolation than the one asked for."""
    resize = create_transform((3, *size), interpolation="bicubic", crop_mode="center").transforms[0]
    if "bicubic" not in str(resize):
        pytest.skip(f"timm {timm.__version__} takes no interpolation for inputs that are not square")


def need_oblong_positions(height: int, width: int, patch: int) -> None:
    """Skip where timm cannot bring the positions of a ViT for ``height x width`` pixels to a square of ``width``."""
    shape: dict[str, Any] = {"patch_size": patch, "embed_dim": 4, "depth": 1, "num_heads": 1}
    oblong, square = (VisionTransformer(img_size=size, **shape) for size in ((height, width), (width, width)))
    try:
        found = checkpoint_filter_fn(dict(oblong.state_dict()), square)["pos_embed"].shape
    except (AssertionError, RuntimeError):
        found = None
    if found != square.state_dict()["pos_embed"].shape:
        pytest.skip(f"timm {timm.__version__} takes every ViT for one of squares when it resamples positions")


def need_views() -> None:
    """Skip where pyarrow reads columns of its view types, but cannot write them."""
    try:
        parquet.write_table(pa.table({"words": pa.array(["a"], pa.string_view())}), pa.BufferOutputStream())
    except pa.ArrowNotImplementedError:
        pytest.skip(f"pyarrow {pa.__version__} writes no view types")


def counts_attention() -> bool:
    """Whether torch counts the products of attention on the CPU."""
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(*torch.ones(3, 1, 1, 2, 2))
    return bool(counter.get_total_flops())
