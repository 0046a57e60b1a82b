"""One optimisation sharded over ranks: each holds some images, and all see the features of all images' views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distributed.group import Ranks
from .real_features import Store

__all__ = ["joined", "own_rows", "scatter_state"]


def own_rows(store: Store, ranks: Ranks) -> range:
    """The rows of a store that this rank is to score: whole chunks where there are enough of them."""
    total, height = len(store), store.chunk_rows
    if total < height * ranks.size:
        return ranks.span(total)
    chunks = ranks.span(-(-total // height))
    return range(chunks.start * height, min(chunks.stop * height, total))


def joined(ranks: Ranks, Z: Tensor, total: int) -> Tensor:
    """Features ``(views * total, d)`` of all images, view by view, on every rank.

    The gradient with respect to this rank's features is taken to be its rows of the gradient at hand: every rank must
    make the same of the result.

    Args:
        Z: those of this rank's images, ``(views * len(ranks.span(total)), d)``, view by view.
    """
    if ranks.size == 1:
        return Z
    whole: Tensor = _Joined.apply(Z, ranks, total)
    return whole


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, Z: Tensor, ranks: Ranks, total: int) -> Tensor:
        context.own, context.total = ranks.span(total), total
        return ranks.all_gather(Z.view(-1, len(context.own), Z.shape[1]), total, axis=1).flatten(0, 1)

    @staticmethod
    def backward(context: Any, *outer: Any) -> Any:
        gradient = outer[0].view(-1, context.total, outer[0].shape[1])
        return gradient[:, context.own.start : context.own.stop].flatten(0, 1), None, None


def scatter_state(ranks: Ranks, tensors: dict[str, Tensor], shared: str) -> dict[str, Tensor]:
    """What every rank needs of rank 0's ``tensors``: all where the name begins with ``shared``, else its images' rows.

    What the others pass is ignored. Tensors lie on the CPU.
    """
    if ranks.size == 1:
        return tensors
    kinds = {name: (list(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}
    dealt = {}
    for name, (shape, dtype) in ranks.broadcast_object(kinds).items():
        whole = name.startswith(shared)
        if ranks.is_main:
            tensor = tensors[name].contiguous()
        else:
            kind = getattr(torch, dtype.removeprefix("torch."))
            tensor = torch.empty(shape, dtype=kind, device="cpu" if whole else "meta")
        dealt[name] = ranks.broadcast(tensor) if whole else ranks.scatter(tensor)
    return dealt
