"""The same bits for the same input on a CUDA device, whose fastest kernels use atomics."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import SettingsError, first_line

__all__ = ["deterministic"]

log = logging.getLogger(__name__)

_memory: Any = torch.utils.deterministic  # what torch does to it at import hides its attributes from type checkers


@contextlib.contextmanager
def deterministic(device: torch.device, attempt: Callable[[], object] | None = None) -> Iterator[None]:
    """Let torch choose kernels that repeat themselves for the length of the block; on a CPU all of ours do anyway.

    Args:
        device: where the block computes.
        attempt: computes as the block will. Kernels of which torch has no such version, or takes it only when nothing
            else is allowed (the backward passes of fused attention), are then refused in the block, unless the
            attempt shows that it cannot do without: that is logged, and they are allowed. ``None`` allows them.

    Raises ``SettingsError`` when the block does what the attempt did not show.
    """
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, fill = torch.backends.cudnn.deterministic, _memory.fill_uninitialized_memory
    torch.backends.cudnn.deterministic = True
    _memory.fill_uninitialized_memory = False  # it would write every new tensor twice
    try:
        strict = attempt is not None and _repeats(attempt)
        torch.use_deterministic_algorithms(True, warn_only=not strict)
        try:
            yield
        except RuntimeError as error:
            if not _refused(error):
                raise
            raise SettingsError(f"{_line(error)}: set runtime.deterministic: false") from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic = cudnn
        _memory.fill_uninitialized_memory = fill


def _repeats(attempt: Callable[[], object]) -> bool:
    torch.use_deterministic_algorithms(True)
    try:
        attempt()
    except RuntimeError as error:
        if not _refused(error):
            raise
        log.warning(
            "results of this encoder on this device may differ in the last bits from run to run: %s", _line(error)
        )
        return False
    return True


def _refused(error: RuntimeError) -> bool:
    """Whether torch was asked for a kernel that it has no repeating version of."""
    return "deterministic" in str(error)


def _line(error: RuntimeError) -> str:
    return first_line(error).split(". ")[0]
