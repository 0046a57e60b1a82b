"""The ranks of one run: processes started together, by ``torchrun`` or any launcher that sets the same environment.

``launched`` reads that environment without importing torch. ``connect`` makes the ranks a group: control messages and
CPU tensors travel over gloo, CUDA tensors over NCCL. A process started alone is a group of one, in which everything
here costs nothing, so that a stage is written once for both.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .errors import ResourceError, SettingsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ALONE", "Ranks", "connect", "launched"]

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_PATIENCE = timedelta(days=1)  # a rank may wait for another's share; one that died is noticed at once, by its socket
_MEETING = timedelta(minutes=10)  # within which all ranks must have started


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: in ``[0, size)``; rank 0 alone holds locks, publishes and reports.
        size: processes of the run.
        local: number among the processes of this machine, which is also that of its CUDA device.
        here: processes of the run on this machine.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's part of ``items``: every ``size``-th, so that parts differ by one item at most."""
        return items[self.rank :: self.size]

    def device(self, device: torch.device) -> torch.device:
        """``device``, or the CUDA device of this rank where no number is given. Raises ``ResourceError``."""
        if device.type != "cuda" or self.size == 1:
            return device
        import torch

        if device.index is not None:
            raise SettingsError(f"runtime.device is {device}, the same for all {self.size} ranks: set it to cuda")
        found = torch.cuda.device_count()
        if self.local >= found:
            raise ResourceError(
                f"rank {self.rank} needs CUDA device {self.local}, but torch sees {found} on this machine: start at "
                f"most {found} processes here"
            )
        torch.cuda.set_device(self.local)
        return torch.device("cuda", self.local)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)

    def gather(self, value: Any) -> list[Any]:
        """JSON-like ``value`` of every rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _explained(self):
            dist.all_gather_object(found, value)
        return found

    def from_first(self, value: Any) -> Any:
        """Rank 0's ``value`` on every rank; what the others pass is ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with _explained(self):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def agree(self, what: str, value: Any) -> None:
        """Raise ``SettingsError`` on every rank unless all pass the same ``value``."""
        found = self.gather(value)
        different = [rank for rank, one in enumerate(found) if one != found[0]]
        if different:
            raise SettingsError(
                f"{what} of ranks {different} differ from those of rank 0: start all ranks with the same settings, "
                f"code, libraries and data"
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors (equal shapes), in place, the same bits on every rank."""
        if self.size == 1:
            return tensor
        import torch.distributed as dist

        with _explained(self):
            dist.all_reduce(tensor)
        return tensor

    def rows(self, tensor: Tensor) -> Tensor:
        """Rows ``(b_r, ...)`` of all ranks, one rank's after the other's; ``b_r`` may differ and may be 0."""
        if self.size == 1:
            return tensor
        import torch
        import torch.distributed as dist

        counts = self.gather(len(tensor))
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _explained(self):
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


ALONE = Ranks()


def launched(environment: Mapping[str, str] = os.environ) -> Ranks:
    """What the launcher says of this process; ``ALONE`` when there was none.

    Raises ``SettingsError`` when its variables are incomplete or contradict each other.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return ALONE
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
    here = _number(environment, "LOCAL_WORLD_SIZE") if environment.get("LOCAL_WORLD_SIZE") else local + 1
    return Ranks(rank, size, local, here)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except ValueError:
        raise SettingsError(f"{name} is {environment[name]!r} in the environment; it must be a whole number") from None


@contextlib.contextmanager
def connect(patience: timedelta = _PATIENCE) -> Iterator[Ranks]:
    """The group of this process's run for the length of the block; ``ALONE`` when it was started alone.

    Raises ``SettingsError`` (see ``launched``) or ``ResourceError`` when the others cannot be reached.
    """
    ranks = launched()
    if ranks.size == 1:
        yield ranks
        return
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", ranks.rank, ranks.size, timeout=_MEETING)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ResourceError(f"rank {ranks.rank} cannot join the others at {where} ({_said(error)})") from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _explained(ranks: Ranks) -> Iterator[None]:
    """A broken connection as what it means: another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            f"rank {ranks.rank} of {ranks.size} lost another rank, which was killed or failed ({_said(error)}): start "
            f"all ranks again, finished work is kept"
        ) from error


def _said(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
