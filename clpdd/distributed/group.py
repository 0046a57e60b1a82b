"""This process among those of its run, and what it can say to them.

A process started alone is a group of one, in which everything here costs nothing, so that a stage is written once for
one process and for many. Control messages are JSON; they and CPU tensors travel over gloo, CUDA tensors over NCCL,
those of other devices as CPU tensors.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..errors import ResourceError, SettingsError, first_line

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "Ranks", "device_number", "reason"]

_PIECE = 2**26  # bytes sent at once


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run.

    Attributes:
        rank: in ``[0, size)``; rank 0 alone holds locks, publishes and reports.
        size: processes of the run.
        local: number among the processes of this machine, which is also that of its CUDA device.
        local_size: processes of the run on this machine, among whom its memory is divided.
        sharing_cores: those of them that may use the same processors, this one included.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    local_size: int = 1
    sharing_cores: int = 1
    _devices: Any = field(default=None, repr=False, compare=False)  # torch's group for CUDA tensors

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def share(self, items: list[Any]) -> list[Any]:
        """This rank's part of ``items``: every ``size``-th, so that parts differ by one item at most."""
        return items[self.rank :: self.size]

    def span(self, total: int, rank: int | None = None) -> range:
        """This rank's (or another's) part of ``range(total)``: contiguous, lengths differ by one at most."""
        rank = self.rank if rank is None else rank
        return range(total * rank // self.size, total * (rank + 1) // self.size)

    def device(self, device: torch.device) -> torch.device:
        """``device``, or the CUDA device of this rank where no number is given. To be called by all ranks.

        That is the one with the rank's number on its machine, or the only one that the launcher lets it see.
        Raises ``SettingsError`` when a number is given, ``ResourceError`` when there are too few devices.
        """
        if self.size == 1:
            return device
        card = None
        if device.type == "cuda":
            if device.index is not None:
                raise SettingsError(f"runtime.device is {device}, the same for all {self.size} ranks: set it to cuda")
            device = torch.device("cuda", device_number(self.local, torch.cuda.device_count()))
            torch.cuda.set_device(device)
            card = str(torch.cuda.get_device_properties(device).uuid)
        self.check_distinct_devices(card)
        return device

    def check_distinct_devices(self, card: str | None) -> None:
        """Raise ``ResourceError`` on every rank when two name the same ``card``; ``None`` is no card."""
        cards = self.all_gather_object(card)
        sharing = [rank for rank, one in enumerate(cards) if one is not None and cards.count(one) > 1]
        if sharing:
            raise ResourceError(
                f"ranks {sharing} would share CUDA devices: start as many processes on a machine as it has of them"
            )

    # -- values --------------------------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_gather_object(None)

    def all_gather_object(self, value: Any) -> list[Any]:
        """The JSON ``value`` of every rank, by rank, on every rank."""
        if self.size == 1:
            return [value]
        own = _encoded(value)
        lengths = self._all(torch.tensor([len(own)]))
        longest = max(int(length) for length in lengths)
        texts = self._all(torch.nn.functional.pad(own, (0, longest - len(own))))
        return [_decoded(text[: int(length)]) for text, length in zip(texts, lengths, strict=True)]

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's JSON ``value`` on every rank; what the others pass is ignored."""
        if self.size == 1:
            return value
        text = _encoded(value) if self.is_main else torch.empty(0, dtype=torch.uint8)
        length = self.broadcast(torch.tensor([len(text)]))
        return _decoded(self.broadcast(text if self.is_main else torch.empty(int(length), dtype=torch.uint8)))

    def agree(self, what: str, value: Any) -> None:
        """Raise ``SettingsError`` on every rank unless all pass the same ``value``."""
        found = self.all_gather_object(value)
        different = [rank for rank, one in enumerate(found) if one != found[0]]
        if different:
            raise SettingsError(
                f"{what} of ranks {different} differ from those of rank 0: start all ranks with the same settings, "
                f"code, libraries and data"
            )

    def all_reduce_max(self, *values: int) -> list[int]:
        """The greatest of all ranks' values, place by place, on every rank."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.int64)
        with _explained(self):
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return [int(one) for one in found]

    # -- tensors -------------------------------------------------------------------------------------------------------

    def all_reduce(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sums of all ranks' tensors (equal shapes, one dtype), the same bits on every rank."""
        if self.size == 1:
            return tensors
        flat, group = self._transport(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        with _explained(self):
            dist.all_reduce(flat, group=group)
        parts = flat.to(tensors[0].device).split([tensor.numel() for tensor in tensors])
        return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's ``tensor``, on the CPU, into that of every rank (of the same shape and dtype)."""
        if self.size > 1:
            with _explained(self):
                dist.broadcast(tensor, src=0)
        return tensor

    def all_gather(self, part: Tensor, total: int, axis: int = 0) -> Tensor:
        """The whole on every rank of what each holds its ``span(total)`` of along ``axis``."""
        if self.size == 1:
            return part
        shape = list(part.shape)
        shape[axis] = -(-total // self.size)
        padded = part.new_zeros(shape)
        padded.narrow(axis, 0, part.shape[axis]).copy_(part)
        shape[axis] = total
        made = part.new_empty(shape)
        for rank, other in enumerate(self._all(padded)):
            rows = self.span(total, rank)
            made.narrow(axis, rows.start, len(rows)).copy_(other.narrow(axis, 0, len(rows)))
        return made

    def gather(self, part: Tensor, total: int) -> Tensor:
        """The rows ``(total, ...)`` that ranks hold a ``span`` each of, on rank 0's CPU; the others keep theirs."""
        if self.size == 1:
            return part
        if not self.is_main:
            for piece in _pieces(part):
                with _explained(self):
                    dist.send(piece.cpu().contiguous(), 0)
            return part
        made = torch.empty(total, *part.shape[1:], dtype=part.dtype)
        made[: len(part)] = part
        for rank in range(1, self.size):
            rows = self.span(total, rank)
            for piece in _pieces(made[rows.start : rows.stop]):
                with _explained(self):
                    dist.recv(piece, rank)
        return made

    def scatter(self, rows: Tensor) -> Tensor:
        """This rank's ``span`` of rank 0's ``rows (n, ...)``, on the CPU; of what others pass only the shape counts."""
        if self.size == 1:
            return rows
        own = self.span(len(rows))
        if not self.is_main:
            made = torch.empty(len(own), *rows.shape[1:], dtype=rows.dtype)
            for piece in _pieces(made):
                with _explained(self):
                    dist.recv(piece, 0)
            return made
        for rank in range(1, self.size):
            other = self.span(len(rows), rank)
            for piece in _pieces(rows[other.start : other.stop]):
                with _explained(self):
                    dist.send(piece.contiguous(), rank)
        return rows[: len(own)].clone()  # lets go of the rest

    def _all(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, of one shape and dtype."""
        sent, group = self._transport(tensor)
        found = [torch.empty_like(sent) for _ in range(self.size)]
        with _explained(self):
            dist.all_gather(found, sent, group=group)
        return [one.to(tensor.device) for one in found]

    def _transport(self, tensor: Tensor) -> tuple[Tensor, Any]:
        """What to send of ``tensor``, and by which of torch's groups: devices that have none talk by the CPU."""
        if tensor.is_cuda and self._devices is not None:
            return tensor, self._devices
        return tensor.cpu(), None


def device_number(local: int, found: int) -> int:
    """The CUDA device of rank ``local`` of a machine among the ``found`` that it is shown.

    Raises ``ResourceError`` when there are too few.
    """
    if found == 1:  # by a launcher that shows each rank its own; ``check_distinct_devices`` refuses a shared one
        return 0
    if local >= found:
        raise ResourceError(
            f"rank {local} of this machine needs a CUDA device of its own, but torch sees {found}: start at most "
            f"{found} processes here"
        )
    return local


def _encoded(value: Any) -> Tensor:
    """JSON as bytes ``(n,)`` uint8."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())


def _pieces(rows: Tensor) -> Sequence[Tensor]:
    """``rows`` in parts that are sent at once."""
    if not len(rows):
        return []
    parts: Sequence[Tensor] = rows.split(max(1, _PIECE // (rows[0].numel() * rows.element_size())))
    return parts


ALONE = Ranks()


@contextlib.contextmanager
def _explained(ranks: Ranks) -> Iterator[None]:
    """A broken connection as what it means: another rank has ended."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            f"rank {ranks.rank} of {ranks.size} lost another rank, which was killed or failed ({reason(error)}): start "
            f"all ranks again, finished work is kept"
        ) from error


def reason(error: Exception) -> str:
    """The first line of an error's message, less the place in torch's own sources that it begins with."""
    return re.sub(r"^\[[^\]]*\]\s*", "", first_line(error))
