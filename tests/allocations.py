"""Which large tensors a block makes, and how much all of them hold at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Made", "peak_bytes"]


class Made(TorchDispatchMode):
    """Notes every tensor of ``least`` numbers or more that is made, and neither a view nor an operation in place.

    Attributes:
        bytes: the size of each, in order.
    """

    def __init__(self, least: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has not annotated it
        self.bytes: list[int] = []
        self._least = least

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in held:
                size = tensor.untyped_storage().nbytes()
                if size >= self._least * tensor.element_size():
                    self.bytes.append(size)
        return found


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors held at once on the CPU while ``run`` ran, beside those that were there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns()))
    return max(held, default=0)
