"""One image through an architecture, counted without memory for its weights where the model allows it."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..catalogue.passes import Pass
from ..encoders.building import REFUSALS
from ..encoders.names import check_architecture
from ..encoders.shapes import input_shape
from ..errors import SettingsError, one_line

__all__ = ["count_pass"]


def count_pass(architecture: str, image_size: int | None = None) -> Pass:
    """Count one image's pass. Raises ``SettingsError`` for an unknown architecture, or a size that it cannot take."""
    check_architecture(architecture)
    sized: list[dict[str, Any]] = [] if image_size is None else [{"img_size": image_size}]
    refused: Exception | None = None
    # without memory; for models that compute with values while they are built, with it
    for device, arguments in ((device, own) for device in ("meta", "cpu") for own in (*sized, {})):
        try:
            return _counted(architecture, arguments, image_size, device)
        except REFUSALS as error:
            refused = refused or error
    assert refused is not None
    raise SettingsError(f"{architecture} cannot be used at image size {image_size}: {one_line(refused)}") from refused


def _counted(architecture: str, arguments: dict[str, Any], image_size: int | None, device: str) -> Pass:
    with torch.device(device):
        model = timm.create_model(architecture, num_classes=0, **arguments).eval().requires_grad_(False)
        shape = input_shape(model) if image_size is None else (image_size, image_size)
        image = torch.empty(1, 3, *shape, requires_grad=True)
    own = {_storage(p) for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(saved: Tensor) -> Tensor:
        if _storage(saved) not in own:
            kept[_storage(saved)] = saved
        return saved

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        features = model(image)
    weights = sum(p.numel() * 4 for p in model.parameters())
    activations = sum(saved.untyped_storage().nbytes() for saved in kept.values())
    return Pass(counter.get_total_flops() / 2, activations, weights, int(features.shape[-1]), max(shape))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
