"""Heights and widths of the inputs that timm's models are configured for."""

from __future__ import annotations

from collections.abc import Sequence

import timm
from torch import nn

__all__ = ["input_shape", "registered_shape"]


def input_shape(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the input that a model is configured for."""
    return _pair(timm.data.resolve_data_config({}, model=model)["input_size"])


def registered_shape(name: str) -> tuple[int, int] | None:
    """The same by a model's name alone; ``None`` where timm's registry does not know it."""
    try:
        config = None if ":" in name else timm.models.get_pretrained_cfg(name)
    except RuntimeError:
        return None
    return None if config is None else _pair(config.input_size)


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return int(size[-2]), int(size[-1])
