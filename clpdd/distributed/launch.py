"""How the ranks of one run meet: processes started by ``torchrun`` or any launcher that sets the same environment.

``launched`` reads that environment without importing torch; ``connect`` makes the ranks a group.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ResourceError, SettingsError

if TYPE_CHECKING:
    from .group import Ranks

__all__ = ["Launched", "connect", "launched", "neighbours"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=1)  # a rank may wait for another's share; one that died is noticed at once, by its socket
_DEVICE_PATIENCE = timedelta(minutes=30)  # the same between devices, where only the time tells that one died
_MEETING = timedelta(minutes=10)  # within which all ranks must have started


class Launched(NamedTuple):
    """What a launcher says of a process: its rank, how many there are, and its rank on its own machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


def launched(environment: Mapping[str, str] = os.environ) -> Launched:
    """What the launcher says of this process; one of one when there was none.

    Raises ``SettingsError`` when its variables are incomplete or contradict each other.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return Launched()
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        raise SettingsError(
            f"the environment names a rank, but {', '.join(missing)} of {', '.join(_VARIABLES)} are not set: start the "
            f"ranks with torchrun, or unset RANK and WORLD_SIZE to run in one process"
        )
    rank, size, local, port = (
        _number(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    if not 0 <= rank < size or not 0 <= local < size or not 0 < port < 2**16:
        raise SettingsError(
            f"RANK={rank}, LOCAL_RANK={local}, WORLD_SIZE={size} and MASTER_PORT={port} do not fit: both ranks must "
            f"lie in [0, WORLD_SIZE), the port in [1, 65535]"
        )
    return Launched(rank, size, local)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise SettingsError(f"{name} is {environment[name]!r} in the environment; it must be a whole number") from None


def neighbours(places: Sequence[Any], rank: int) -> tuple[int, int]:
    """Of ranks whose ``places`` are (machine, processors they may use, ...), how many share those of ``rank``.

    Returns how many are on its machine, and how many of these may use the same processors, itself included.
    """
    machine, processors = places[rank][:2]
    here = [place[1] for place in places if place[0] == machine]
    return len(here), here.count(processors)


def _processors() -> list[int]:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def connect(patience: timedelta = _PATIENCE) -> Iterator[Ranks]:
    """The group of this process's run for the length of the block; ``ALONE`` when it was started alone.

    Raises ``SettingsError`` (see ``launched``) or ``ResourceError`` when the others cannot be reached.
    """
    import torch  # here: commands that fail before they compute must not wait for it
    import torch.distributed as dist  # likewise

    from .group import Ranks, reason  # likewise

    ranks = Ranks(*launched())
    if ranks.size == 1:
        yield ranks
        return
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", ranks.rank, ranks.size, timeout=_MEETING)))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
        places = ranks.all_gather_object([socket.gethostname(), _processors(), torch.cuda.is_available()])
        local_size, sharing_cores = neighbours(places, rank)
        ranks = replace(ranks, local_size=local_size, sharing_cores=sharing_cores)
        if all(cuda for _, _, cuda in places) and dist.is_nccl_available():
            ranks = replace(ranks, _devices=dist.new_group(backend="nccl", timeout=_DEVICE_PATIENCE))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ResourceError(f"rank {ranks.rank} cannot join the others at {where} ({reason(error)})") from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
