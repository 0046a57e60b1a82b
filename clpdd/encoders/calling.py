"""How the encoder is called: in which precision, compiled or not, and with how many images at once."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..errors import SettingsError, first_line
from .encoder import Encoder
from .lowered import lowered, regions

__all__ = [
    "MAX_BATCH",
    "batch_that_fits",
    "compiled_call",
    "encode",
    "encoder_call",
    "pass_through",
    "resolve_precision",
    "saved_bytes",
]

MAX_BATCH = 1024
"""Views per pass that ``batch_that_fits`` never exceeds: more is no faster."""

_CPU_BUDGET = 4 * 2**30  # bytes: a constant, so that the same run on another machine takes the same chunks
_WORKING_SPACE = 1.25  # what the kernels take beside the saved activations
_PIXEL_COPIES = 10  # image, view, normalised view and their gradients


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA devices that compute in it and float32 elsewhere."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def encoder_call(encoder: Encoder, precision: str = "auto") -> Callable[[Tensor], Tensor]:
    """The encoder as a function of pixels ``(b, 3, s, s)``, features ``(b, d)`` float32 whatever the precision inside.

    Args:
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``: on CUDA weights in bfloat16 (``lowered``),
            elsewhere, and for models that do not bear it, autocast around the encoder.
    """
    return _call(*_model(encoder, precision))


def compiled_call(encoder: Encoder, precision: str = "auto") -> Callable[[Tensor], Tensor]:
    """The same by ``torch.compile``: on CUDA part by part of those that are alike, elsewhere as a whole.

    The first passes of a shape take long; a failure is a ``SettingsError``.
    """
    model, dtype = _model(encoder, precision)
    if encoder.device.type == "cuda":
        model = copy.deepcopy(model)
        for part in regions(model):
            part.compile(dynamic=False)
        call = _call(model, dtype)
    else:
        call = _call(torch.compile(model), dtype, encoder.device)

    def guarded(images: Tensor) -> Tensor:
        try:
            with _repeatable():
                return call(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise SettingsError(
                f"distill.compile is true, but {encoder.name!r} cannot be compiled on this machine "
                f"({first_line(error)}): set it to false, or see that a C++ compiler "
                f"(CPU) or Triton (CUDA) is installed"
            ) from error

    return guarded


def _model(encoder: Encoder, precision: str) -> tuple[Encoder, torch.dtype]:
    """What computes, and the dtype of the autocast around it: float32 is none."""
    device = encoder.device
    dtype = resolve_precision(precision, device)
    if device.type == "cuda" and dtype == torch.bfloat16 and (made := lowered(encoder)) is not None:
        return made, torch.float32
    return encoder, dtype


def _call(
    model: Callable[[Tensor], Tensor], dtype: torch.dtype, device: torch.device | None = None
) -> Callable[[Tensor], Tensor]:
    kind = (device or model.device).type  # type: ignore[attr-defined]  # an encoder, where no device is given

    def call(images: Tensor) -> Tensor:
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            features: Tensor = model(images)
        return features.float()

    return call


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Compile kernels by rule instead of by trial, which ends otherwise every time, and as many as are asked for."""
    import torch._dynamo.config  # here: slow to import, and needed only where something is compiled
    import torch._inductor.config

    ruled = {"deterministic": True} if hasattr(torch._inductor.config, "deterministic") else {}
    with torch._inductor.config.patch(ruled), torch._dynamo.config.patch(recompile_limit=256):
        yield


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor, batch: int = 256, precision: str = "float32") -> Tensor:
    """Features ``(n, d)`` float32 of images ``(n, 3, h, w)``, uint8 or float in [0, 1], in batches, without a graph.

    ``precision`` is that of the encoder, as in ``encoder_call``.
    """
    device, call = encoder.device, encoder_call(encoder, precision)
    parts = []
    for part in images.split(batch):
        part = part.to(device)
        parts.append(call(part.float() / 255 if part.dtype == torch.uint8 else part))
    return torch.cat(parts) if parts else torch.empty(0, encoder.dim, device=device)


def pass_through(encoder: Encoder, precision: str = "auto") -> None:
    """One view forwards and backwards."""
    image = torch.full((1, 3, encoder.size, encoder.size), 0.5, device=encoder.device, requires_grad=True)
    torch.autograd.grad(encoder_call(encoder, precision)(image).sum(), image)


def saved_bytes(encode: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """Bytes that a pass over ``images`` keeps for its backward pass, each tensor's memory counted once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encode(images.requires_grad_())
    return sum(kept.values())


def batch_that_fits(encoder: Encoder, precision: str = "auto") -> int:
    """Views that a pass with a graph can hold in 4 GiB of the machine's memory: measured on three images, of any model.

    What one image more keeps for the backward pass decides; ``clpdd.optimise.passes`` plans for CUDA devices.
    """
    device, size = encoder.device, encoder.size
    encode = encoder_call(encoder, precision)
    one, two = (saved_bytes(encode, torch.full((count, 3, size, size), 0.5, device=device)) for count in (1, 2))
    per_view = max(two - one, 0) * _WORKING_SPACE + _PIXEL_COPIES * 3 * size * size * 4
    count = min(MAX_BATCH, int(_CPU_BUDGET / per_view))
    return max(1, count - count % 8 if count > 8 else count)
