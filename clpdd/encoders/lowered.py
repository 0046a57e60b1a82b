"""A frozen encoder made quick on CUDA: weights in bfloat16 once and for all, and two of its parts in quicker forms.

An encoder whose weights never change need not have them cast at every pass, as autocast does. Layer norms take their
means and variances in float32 all the same (so torch's kernels do), batch norms keep float32 weights and statistics,
buffers (positions, masks) stay as they are, and features come out in float32.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import first_line
from .encoder import Encoder

__all__ = ["lowered", "regions"]

log = logging.getLogger(__name__)

_SMALLEST_PATCH = 8  # pixels: smaller ones are stems of convolutional networks, whose own kernels are good at them
_APART = 3.0  # times the distance of autocast's features from float32's, at most

_made: WeakKeyDictionary[Encoder, Encoder | None] = WeakKeyDictionary()


def lowered(encoder: Encoder) -> Encoder | None:
    """A copy with bfloat16 weights, one for every encoder; ``None`` for models that do not compute rightly so.

    Rightly means: on random images its features are about as near to those in float32 as autocast's are.
    """
    if encoder not in _made:
        with torch.inference_mode(False):  # it is kept, and may next be asked for where gradients are taken
            _made[encoder] = _lowered(encoder)
    return _made[encoder]


@torch.no_grad()
def _lowered(encoder: Encoder) -> Encoder | None:
    device = encoder.device
    images = torch.rand(2, 3, *encoder.shape, generator=torch.Generator().manual_seed(0)).to(device)
    exact = encoder(images)
    with torch.autocast(device.type, torch.bfloat16):
        usual = (encoder(images).float() - exact).norm()
    said = ""
    for quicker in (True, False):
        try:
            made = _cast(encoder, quicker)
            apart = (made(images) - exact).norm()
        except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
            said = first_line(error)
            continue
        if apart <= _APART * usual + 1e-6 * exact.norm():
            return made
        said = f"features are {float(apart / usual):.1f} times as far from float32's as autocast's"
    log.info("%s keeps float32 weights under autocast: with bfloat16 weights %s", encoder.name, said)
    return None


def _cast(encoder: Encoder, quicker: bool) -> Encoder:
    made = copy.deepcopy(encoder)
    if quicker:
        _replace(made)
    for module in made.modules():
        if isinstance(module, Encoder) and not any(isinstance(part, Encoder) for part in module.model.modules()):
            module.input_dtype = torch.bfloat16
        if not isinstance(module, _BatchNorm):
            for weight in module.parameters(recurse=False):
                weight.data = weight.data.to(torch.bfloat16)
    return made


def _replace(model: nn.Module) -> None:
    attends = importlib.util.find_spec("triton") is not None
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and _is_patches(child):
                setattr(parent, name, Patches(child))
            elif attends and _is_attention(child):
                setattr(parent, name, _Attention(child))


def regions(model: nn.Module) -> list[nn.Module]:
    """Parts of a model that are alike, as a transformer's blocks: compiled, all of them cost what one costs.

    Those of the longest row of modules of one class; of a model without a row of three, the model itself.
    """
    rows = [
        list(module)
        for module in model.modules()
        if isinstance(module, (nn.Sequential, nn.ModuleList)) and len({type(part) for part in module}) == 1
    ]
    longest = max(rows, key=len, default=[])
    return longest if len(longest) >= 3 else [model]


# -- the quicker forms -------------------------------------------------------------------------------------------------


def _is_patches(module: nn.Conv2d) -> bool:
    side = module.kernel_size[0]
    return (
        side >= _SMALLEST_PATCH
        and module.kernel_size == module.stride == (side, side)
        and module.padding in ((0, 0), 0, "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )


class Patches(nn.Module):
    """A convolution over patches that do not overlap, as the product that it is."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.side = convolution.kernel_size[0]
        self.weight = nn.Parameter(convolution.weight.detach().flatten(1).contiguous(), requires_grad=False)
        bias = convolution.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(b, k, h / side, w / side)`` of ``(b, c, h, w)``; what is left of a side is left out."""
        side = self.side
        b, c, rows, columns = images.shape[0], images.shape[1], images.shape[2] // side, images.shape[3] // side
        whole = images[:, :, : rows * side, : columns * side]
        parts = whole.reshape(b, c, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)
        made = nn.functional.linear(parts, self.weight, self.bias)
        planes: Tensor = made.transpose(1, 2).unflatten(2, (rows, columns))
        return planes


def _is_attention(module: nn.Module) -> bool:
    """Whether it is timm's plain self-attention, with nothing between the projections and the product."""
    own: Any = module
    if type(module).__name__ != "Attention" or not type(module).__module__.startswith("timm."):
        return False
    if getattr(own, "gate", None) is not None or not isinstance(getattr(own, "norm", nn.Identity()), nn.Identity):
        return False
    plain = all(isinstance(getattr(own, name, None), nn.Identity) for name in ("q_norm", "k_norm"))
    width = getattr(own, "head_dim", 0)
    return plain and width in (16, 32, 64, 128) and isinstance(getattr(own, "qkv", None), nn.Linear)


class _Attention(nn.Module):
    """timm's ``Attention`` by ``clpdd.functional.attention`` where the sequence is short and nothing is masked."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain: Any = plain

    def forward(self, tokens: Tensor, *others: Any, **named: Any) -> Tensor:
        from ..functional.attention import LONGEST, attention  # here: only CUDA needs it, and it may be absent

        b, n, _ = tokens.shape
        asked = [*others, *named.values()]
        if n > LONGEST or any(one is not None and one is not False for one in asked):
            masked: Tensor = self.plain(tokens, *others, **named)
            return masked
        plain = self.plain
        qkv = plain.qkv(tokens).view(b, n, 3, plain.num_heads, plain.head_dim)
        made: Tensor = plain.proj(attention(qkv, plain.head_dim**-0.5).flatten(2))
        return made
