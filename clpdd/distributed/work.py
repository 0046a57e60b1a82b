"""A work folder that the ranks of a run share: rank 0 holds and publishes it, the others work in it beside rank 0."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..errors import ResourceError
from ..storage.files import explain_os_errors
from ..storage.work import WorkFolder, lock
from .group import Ranks

__all__ = ["await_ranks", "hold_as_rank", "produce", "shared"]

_PATIENCE = 60.0  # seconds for the ranks of a run whose rank 0 has ended to notice it


@contextlib.contextmanager
def shared(work: WorkFolder, ranks: Ranks) -> Iterator[None]:
    """Hold ``work`` by all ranks for the length of the block; what an earlier run has left at work is waited for.

    Raises ``SettingsError`` when the ranks' fingerprints differ, else as ``WorkFolder`` and the functions below do.
    """
    ranks.agree("settings, code or data", work.digest)
    with contextlib.ExitStack() as held:
        if ranks.is_main:
            held.enter_context(work)
            await_ranks(work.path, max(_PATIENCE, work.wait))
        ranks.barrier()
        if not ranks.is_main:
            held.enter_context(hold_as_rank(work.path))
        ranks.barrier()
        yield


def produce(
    work: WorkFolder,
    ranks: Ranks,
    make: Callable[[], None],
    targets: Mapping[str, Path],
    discard: tuple[str, ...] = (),
) -> bool:
    """``WorkFolder.produce`` by all ranks, each of which calls its own ``make`` if there is anything to make."""

    def lead() -> None:
        ranks.broadcast_object(True)
        make()

    if ranks.is_main:
        made = work.produce(lead, targets, discard)
        if not made:
            ranks.broadcast_object(False)
    else:
        made = ranks.broadcast_object(None)
        if made:
            make()
    ranks.barrier()  # published for all
    return made


def await_ranks(folder: Path, wait: float = _PATIENCE) -> None:
    """Wait until no rank of an earlier run, whose rank 0 has ended, is still at work in ``folder``.

    Raises ``BusyError`` after ``wait`` seconds.
    """
    if not (folder / "lock").exists():  # no rank but rank 0 has been here
        return
    with explain_os_errors("use the work folder", folder):
        descriptor = lock(folder, "a rank of an earlier run of the same work", wait)
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)  # our own number: the ranks to come note theirs
        os.close(descriptor)


@contextlib.contextmanager
def hold_as_rank(folder: Path) -> Iterator[None]:
    """Hold ``folder``, beside other ranks, for the length of the block; rank 0 holds the work folder itself.

    Raises ``ResourceError`` when the folder, which rank 0 has made, is not to be seen from here.
    """
    if not folder.is_dir():
        raise ResourceError(
            f"rank 0 has made the work folder {folder}, but it cannot be seen from here: the data must lie on a file "
            f"system that all ranks share, at the same path"
        )
    with explain_os_errors("use the work folder", folder):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):  # a courtesy to who waits, as in ``work.lock``
            os.write(descriptor, f" {os.getpid()}@{socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)
