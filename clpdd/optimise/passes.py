"""How a step's views are cut into passes of the encoder: what fits, what is kept, what is compiled.

A plan is a function of the settings and of all the memory that the device has, never of what happens to be free, and is
noted with the work: a run that is resumed or repeated takes the same passes, hence the same last bits.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.group import Ranks
from ..encoders.calling import compiled_call, encoder_call, saved_bytes
from ..encoders.encoder import Encoder
from ..errors import ResourceError, first_line
from ..runtime.machine import is_memory_error
from ..storage.files import read_json, write_json

__all__ = ["Need", "Plan", "agreed", "divided", "encoder_of", "measured", "most", "repays", "starts_slowly"]

log = logging.getLogger(__name__)

_MOST, _FEWEST = 512, 192  # views in a pass: more is no faster, fewer leave a large device waiting for its processor
_WAITING = 256  # views below which the kernels of a pass are quicker than what starts them
_PER_PASS = 25.0  # views that the start of a pass costs the time of
_BLIND = 0.43  # a pass without a graph, of one with a graph and back
_COMPILED_SAVES = 4.8e12  # bytes a second: what compiling saves is about one reading of what a pass keeps
_COMPILING = 10.0  # seconds
_WORK = 0.14  # of what a pass keeps: what its kernels take beside, there and back
_PIXELS_KEPT, _PIXELS_AT_WORK = 2, 6  # copies of a view's pixels, float32


@dataclass(frozen=True)
class Need:
    """Bytes a view takes: ``graph`` while its graph is kept, ``work`` beside it in the pass that is running."""

    graph: int
    work: int


@dataclass(frozen=True)
class Plan:
    """The passes of a step.

    Attributes:
        batch: views in a pass.
        kept: views whose graphs are kept from the first pass; the others are encoded twice.
        most: views that a pass may have where nothing is kept.
        compiled: whether passes with a graph are compiled.
        replayed: whether a pass is recorded once and replayed (CUDA graphs).
    """

    batch: int
    kept: int = 0
    most: int = _MOST
    compiled: bool = False
    replayed: bool = False

    def told(self, views: int) -> str:
        """In words, for a step of so many views."""
        if views <= self.batch:
            passes = f"{views} views in one pass"
        elif self.kept >= views:
            passes = f"{views} views in passes of {self.batch}, each encoded once"
        elif self.kept:
            passes = f"{views} views in passes of {self.batch}, {self.kept} encoded once, the others twice"
        else:
            passes = f"{views} views in passes of {self.batch}, each encoded twice"
        return passes + (", compiled" if self.compiled else "") + (", replayed" if self.replayed else "")


def measured(encoder: Encoder, precision: str) -> Need:
    """What a view takes of this encoder: found by passes of one and of two grey images."""
    device, size = encoder.device, encoder.size
    encode = encoder_call(encoder, precision)
    one, two = (saved_bytes(encode, torch.full((count, 3, size, size), 0.5, device=device)) for count in (1, 2))
    slope, pixels = max(two - one, 0), 3 * size * size * 4
    return Need(slope + _PIXELS_KEPT * pixels, int(_WORK * slope) + _PIXELS_AT_WORK * pixels)


def divided(images: int, count: int, need: Need, room: int, batch: int | None = None) -> tuple[int, int]:
    """Views in a pass, and views whose graphs are kept, for ``count`` views of each of ``images`` in ``room`` bytes.

    Of passes of equal length the ones that take the least time by a simple reckoning: fewer passes start less often,
    shorter ones waste less of the room. ``batch`` gives the views of a pass.

    Raises ``ResourceError`` where not even one view fits.
    """
    fits = room // (need.graph + need.work)
    if fits < 1:
        raise ResourceError(
            f"{max(room, 0) / 2**30:.2f} GiB are left for the encoder's passes, but one view takes "
            f"{(need.graph + need.work) / 2**30:.2f} GiB: raise runtime.memory, or set runtime.state and "
            f"runtime.features to host"
        )
    total, limit = images * count, min(_MOST, fits)
    choices = [batch] if batch else []
    if not choices and count > limit:
        choices = [limit]
    for passes in range(-(-total // limit), total + 1):
        if choices and (batch or count > limit or -(-images // passes) * count < _FEWEST):
            break
        if (views := -(-images // passes) * count) <= limit:
            choices.append(views)
    kept = {views: _keeps(room, need, views, total) for views in choices}
    best = min(choices, key=lambda views: (_reckoned(total, views, kept[views]), -views))
    return best, kept[best]


def most(need: Need, room: int) -> int:
    """Views that a pass may have where nothing is kept."""
    return max(1, min(_MOST, room // (need.graph + need.work)))


def _keeps(room: int, need: Need, batch: int, total: int) -> int:
    """Views in whole passes whose graphs fit beside a pass at work."""
    kept = max(0, room - need.work * batch) // need.graph
    return total if kept >= total else kept // batch * batch


def _reckoned(total: int, batch: int, kept: int) -> float:
    """Time of a step, in views there and back."""
    blind = 0 if total <= batch else total - kept
    return total * (1 + _PER_PASS / batch) + _BLIND * blind


def repays(steps: int, views: int, need: Need, device: torch.device, precision: torch.dtype) -> bool:
    """Whether a run is so long that compiling its passes shortens it."""
    if device.type != "cuda" or precision != torch.bfloat16 or importlib.util.find_spec("triton") is None:
        return False
    return steps * views * need.graph / _COMPILED_SAVES >= _COMPILING


def starts_slowly(plan: Plan, views: int) -> bool:
    """Whether passes are too short for a CUDA device, and none is kept whose record the next would write over."""
    return plan.batch < _WAITING and plan.kept == 0 and views > plan.batch


# -- agreement -----------------------------------------------------------------------------------------------------


def agreed(note: Path, make: Callable[[], Plan], ranks: Ranks, device: torch.device) -> Plan:
    """The plan that was noted when the work began, or that is made and noted now; the same for all ranks.

    Work that was begun on another kind of device goes on with its plan, unless this one has less memory.
    """
    card, memory = _card(device)
    noted: dict[str, Any] | None = ranks.broadcast_object(read_json(note) if ranks.is_main and note.exists() else None)
    if noted is not None and noted["card"] != card:
        log.warning("begun on %s, goes on on %s: the last bits of the result may differ", noted["card"], card)
        if memory < noted["memory"]:
            noted = None
    if noted is None:
        plans = ranks.all_gather_object(asdict(make()))
        noted = {key: min(plan[key] for plan in plans) for key in plans[0]} | {"card": card, "memory": memory}
        if ranks.is_main:
            write_json(note, noted)
    return Plan(**{key: value for key, value in noted.items() if key not in ("card", "memory")})


def _card(device: torch.device) -> tuple[str, int]:
    if device.type != "cuda":
        return device.type, 0
    return torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory


# -- the call ------------------------------------------------------------------------------------------------------


def encoder_of(
    encoder: Encoder, precision: str, plan: Plan, views: int, strictly: bool = False
) -> Callable[[Tensor], Tensor]:
    """The encoder as a function of pixels that makes its passes as planned.

    Args:
        views: views of a step, all in one pass or not.
        strictly: a failure to compile is a ``SettingsError``; else the encoder goes on without, with a word.
    """
    call = plain = encoder_call(encoder, precision)
    rows, device = min(plan.batch, views), encoder.device
    if device.type != "cuda":
        return compiled_call(encoder, precision) if plan.compiled else plain
    sample = (rows, 3, encoder.size, encoder.size)
    if plan.compiled:
        log.info("compiling the encoder for passes of %d views", rows)
        made = _padded(compiled_call(encoder, precision), rows, plain)
        call = _tried(made, torch.full(sample, 0.5, device=device), plain, strictly)
    if plan.replayed:
        call = _recorded(call, torch.full(sample, 0.5, device=device))
    return call


def _padded(
    call: Callable[[Tensor], Tensor], rows: int, blind: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """``call`` for passes with a graph, always with ``rows`` images; ``blind`` for the others."""

    def padded(images: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return blind(images)
        return call(_filled(images, rows))[: len(images)]

    return padded


def _filled(images: Tensor, rows: int) -> Tensor:
    missing = rows - len(images)
    return images if missing <= 0 else torch.cat([images, images.new_zeros(missing, *images.shape[1:])])


def _tried(
    call: Callable[[Tensor], Tensor], sample: Tensor, plain: Callable[[Tensor], Tensor], strictly: bool
) -> Callable[[Tensor], Tensor]:
    """``call`` if it takes ``sample`` there and back, else ``plain``, with a word."""
    try:
        leaf = sample.requires_grad_()
        torch.autograd.grad(call(leaf).sum(), leaf)
    except Exception as error:  # compilers fail in many ways
        if strictly or is_memory_error(error):
            raise
        log.warning("the encoder cannot be compiled here and goes on without (%s)", first_line(error))
        return plain
    return call


def _recorded(call: Callable[[Tensor], Tensor], sample: Tensor) -> Callable[[Tensor], Tensor]:
    """``call`` recorded as CUDA graphs for the number of images of ``sample``; as it is, with a word, if that fails."""
    rows = len(sample)
    try:
        replay: Any = torch.cuda.make_graphed_callables(call, (sample.requires_grad_(),))
    except Exception as error:
        if is_memory_error(error):
            raise
        log.warning("the encoder's passes cannot be recorded here and go on without (%s)", first_line(error))
        return call

    def replayed(images: Tensor) -> Tensor:
        if len(images) > rows:
            return call(images)
        made: Tensor = replay(_filled(images, rows))[: len(images)]
        return made

    return replayed
