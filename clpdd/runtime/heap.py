"""Memory that a process has freed, kept for its next pass over an encoder instead of returned to the system."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator
from functools import cache

__all__ = ["freed_memory_kept"]

# malloc.h of the GNU C library
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
# Where the library's own thresholds, which grow with what is freed, stand once large tensors have been freed.
_USUAL = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 64 * 2**20}

_lock = threading.Lock()
_held = 0


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within it the GNU C library keeps what is freed; elsewhere than on Linux with that library nothing changes.

    An encoder's pass on the CPU allocates and frees hundreds of tensors. As the library comes, those above 32 MiB are
    fresh pages of the system every time, which it clears one by one: up to half of the time of a pass at 224 pixels.
    The process's peak grows by some per cent, since what lies free is not always of the size that is asked for. At the
    end what is free goes back. May be nested, and entered by several threads. Results are the same.
    """
    global _held
    library = _library()
    if library is None:
        yield
        return
    with _lock:
        _held += 1
        if _held == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _held -= 1
            if _held == 0:
                for option, value in _USUAL.items():
                    library.mallopt(option, value)
                library.malloc_trim(0)


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
