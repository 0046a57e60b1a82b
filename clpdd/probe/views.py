"""What a probe sees of a distilled set: features of the images as they are, or of augmented views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoders.calling import encode
from ..encoders.encoder import Encoder
from ..functional.augment import Augmentation, augment
from ..functional.seeding import generator
from ..runtime.heap import freed_memory_kept

__all__ = ["FreshViews", "Stream", "ViewBank", "encode_clean", "encode_views"]

_AUGMENT_ROWS = 256  # images augmented at once: part of how views are drawn, so a constant and not a setting
_EPOCHS_AHEAD = 32  # epochs whose choices go to the device together


@dataclass(frozen=True)
class Stream:
    """The random numbers of one probe: a function of the run's seed, the draw of images and the probe's index."""

    seed: int
    index: int
    draw: int = 0

    def generator(self, *path: str | int) -> torch.Generator:
        """A CPU generator for one purpose; methods and encoders share it, so that they are compared in pairs."""
        return generator(self.seed, "probe", self.index, self.draw, *path)


@freed_memory_kept()
def encode_clean(encoder: Encoder, images: Tensor, batch: int, precision: str = "float32") -> Tensor:
    """Features ``(..., n, d)`` float32 of images ``(..., n, 3, s, s)`` uint8 as they are."""
    return encode(encoder, images.flatten(0, -4), batch, precision).view(*images.shape[:-3], encoder.dim)


@freed_memory_kept()
def encode_views(
    encoder: Encoder,
    images: Sequence[Tensor],
    streams: Sequence[Stream],
    views: range,
    settings: Augmentation,
    batch: int,
    precision: str = "float32",
    tick: Callable[[], object] = lambda: None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Features of augmented views (the field's protocol: flip and random resized crop).

    Args:
        images: ``P`` sets of images ``(n, 3, s, s)`` uint8, one for each stream.
        views: numbers of the views. View ``v`` of a stream is the same whichever others are asked for with it.
        settings: the augmentation.
        batch: images per encoder pass.
        precision: of the encoder.
        tick: called once a pass; it may raise to stop.
        dtype: how the features are kept.

    Returns:
        ``(P, len(views), n, d)`` on the encoder's device.
    """
    device = encoder.device
    count = len(images[0])
    bank = torch.empty(len(streams) * len(views) * count, encoder.dim, dtype=dtype, device=device)
    waiting: list[Tensor] = []
    done = 0

    def flush() -> None:
        nonlocal done
        if waiting:
            made = encode(encoder, torch.cat(waiting), batch, precision)
            bank[done : done + len(made)] = made
            done += len(made)
            waiting.clear()
            tick()

    for own, stream in zip(images, streams, strict=True):
        pixels = own.to(device).float() / 255
        for view in views:
            for first in range(0, count, _AUGMENT_ROWS):
                chosen = stream.generator("view", view, first)
                waiting.append(augment(pixels[first : first + _AUGMENT_ROWS], encoder.size, settings, chosen))
                if sum(map(len, waiting)) >= batch:
                    flush()
    flush()
    return bank.view(len(streams), len(views), count, encoder.dim)


class ViewBank:
    """One view of every image an epoch, drawn at random out of views encoded beforehand.

    Args:
        bank: ``(P, V, n, d)``, of any float type.
        streams: ``P`` sources of the choices, which are a function of the stream and the epoch.
    """

    def __init__(self, bank: Tensor, streams: Sequence[Stream]) -> None:
        self._views, self._count, self._dim = bank.shape[1:]
        self._flat, self._streams = bank.flatten(0, 2), streams
        self._drawn: tuple[int, Tensor] | None = None

    def __call__(self, epoch: int, rows: Tensor | None = None) -> Tensor:
        """``(P, b, d)`` float32: this epoch's views of the images ``rows (P, b)``; ``None`` is all, in order."""
        places = self._places(epoch) if rows is None else self._places(epoch).gather(1, rows)
        # A gather of whole rows: several times quicker than indexing by three tensors.
        return self._flat.index_select(0, places.flatten()).float().view(*places.shape, self._dim)

    def _places(self, epoch: int) -> Tensor:
        """``(P, n)`` row numbers in the flat bank."""
        first = epoch - epoch % _EPOCHS_AHEAD
        if self._drawn is None or self._drawn[0] != first:
            drawn = torch.stack([self._draw(first + k) for k in range(_EPOCHS_AHEAD)])
            self._drawn = first, drawn.to(self._flat.device)
        return self._drawn[1][epoch - first]

    def _draw(self, epoch: int) -> Tensor:
        choices = [
            torch.randint(self._views, (self._count,), generator=s.generator("pick", epoch)) for s in self._streams
        ]
        probe = torch.arange(len(self._streams))[:, None]
        return (probe * self._views + torch.stack(choices)) * self._count + torch.arange(self._count)


class FreshViews:
    """Features that are made anew every epoch, kept until the next one.

    Args:
        make: epoch -> ``(P, n, d)``.
    """

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        self._make = make
        self._kept: tuple[int, Tensor] | None = None

    def __call__(self, epoch: int, rows: Tensor | None = None) -> Tensor:
        """``(P, b, d)``: this epoch's features of the images ``rows (P, b)``; ``None`` is all, in order."""
        if self._kept is None or self._kept[0] != epoch:
            self._kept = None  # freed before the next ones are made
            self._kept = epoch, self._make(epoch)
        Z = self._kept[1]
        return Z if rows is None else Z.gather(1, rows[..., None].expand(-1, -1, Z.shape[-1]))
