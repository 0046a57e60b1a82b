"""timm's own conversion of checkpoints: position embeddings of other image sizes, names of other codebases."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from timm.models import _builder
from torch import Tensor, nn

__all__ = ["Conversion", "conversion_of", "unloaded"]

Conversion = Callable[[dict[str, Tensor], nn.Module], Mapping[str, Tensor]]

_LOCK = threading.RLock()


@contextlib.contextmanager
def unloaded() -> Iterator[None]:
    """Within it, models that timm builds with pre-trained weights are built without: they keep their conversion.

    Which conversion a model has is decided where timm builds it (FlexiViT's differs from that of other ViTs in the same
    file) and is handed to nothing but its loading of weights, in whose stead this stands.
    """

    def note(model: nn.Module, *_: Any, filter_fn: Conversion | None = None, **__: Any) -> None:
        model.__dict__["_clpdd_conversion"] = filter_fn

    with _LOCK:
        loading, _builder.load_pretrained = _builder.load_pretrained, note
        try:
            yield
        finally:
            _builder.load_pretrained = loading


def conversion_of(model: nn.Module) -> Conversion | None:
    """How timm converts checkpoints for ``model``: as noted while it was built, else that of its class's module."""
    if "_clpdd_conversion" in model.__dict__:
        noted: Conversion | None = model.__dict__["_clpdd_conversion"]
        return noted
    return getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
