"""Weights out of local safetensors files."""

from __future__ import annotations

import sys
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ArtifactError

__all__ = ["load_weights"]


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a local safetensors file into ``model``; heads of a classifier (``num_classes`` > 0) are left out.

    Raises ``ArtifactError`` when the file is missing, is not safetensors (a pickle is refused, never opened),
    or its tensors do not fit, naming the first keys that differ.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"weights file {path} does not exist: check encoder_options")
    try:
        state = load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not a safetensors file ({error}). Pickled checkpoints (.pt, .pth, .bin) are refused, because "
            f"loading one can run code: convert it with safetensors.torch.save_file first"
        ) from error
    state = _converted(model, state, path)
    own = model.state_dict()
    heads = {
        prefix for prefix in ("fc.", "head.", "classifier.", "head_dist.") if not any(k.startswith(prefix) for k in own)
    }
    state = {key: value for key, value in state.items() if not key.startswith(tuple(heads))} if heads else state
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    if missing or unexpected or wrong:
        raise ArtifactError(
            f"{path} does not fit the model: {_count('missing', missing)}, {_count('unexpected', unexpected)}, "
            f"{_count('of another shape', wrong)}. Is it the right architecture?"
        )
    model.load_state_dict(state)


def _converted(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """``state`` through the model's own conversion, as timm loads it: position embeddings of other image sizes."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, Tensor] = convert(dict(state), model)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} does not fit the model ({type(error).__name__}: {error}). Is it the right architecture?"
        ) from error
    return converted


def _count(what: str, keys: list[str]) -> str:
    return f"{len(keys)} {what}" + (f" ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else "")
