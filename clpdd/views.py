"""What a probe sees of a distilled set: features of the images as they are, or of augmented views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .augment import augment
from .config import AugmentSettings
from .encoders import Encoder, encode
from .seeding import generator

__all__ = ["Stream", "encode_clean", "encode_views", "pick_views"]

_AUGMENT_ROWS = 256  # images augmented at once: part of how views are drawn, so a constant and not a setting


@dataclass(frozen=True)
class Stream:
    """The random numbers of one probe: a function of the run's seed, the draw of images and the probe's index."""

    seed: int
    index: int
    draw: int = 0

    def generator(self, *path: str | int) -> torch.Generator:
        """A CPU generator for one purpose; methods and encoders share it, so that they are compared in pairs."""
        return generator(self.seed, "probe", self.index, self.draw, *path)


def encode_clean(encoder: Encoder, images: Tensor, batch: int) -> Tensor:
    """Features ``(..., n, d)`` float32 of images ``(..., n, 3, s, s)`` uint8 as they are."""
    return encode(encoder, images.flatten(0, -4), batch).view(*images.shape[:-3], encoder.dim)


def encode_views(
    encoder: Encoder,
    images: Sequence[Tensor],
    streams: Sequence[Stream],
    views: range,
    settings: AugmentSettings,
    batch: int,
    tick: Callable[[], object] = lambda: None,
) -> Tensor:
    """Features of augmented views (the field's protocol: flip and random resized crop).

    Args:
        images: ``P`` sets of images ``(n, 3, s, s)`` uint8, one for each stream.
        views: numbers of the views. View ``v`` of a stream is the same whichever others are asked for with it.
        settings: the augmentation.
        batch: images per encoder pass.
        tick: called once a pass; it may raise to stop.

    Returns:
        ``(P, len(views), n, d)`` float32 on the encoder's device.
    """
    device = encoder.mean.device
    count = len(images[0])
    parts: list[Tensor] = []
    waiting: list[Tensor] = []

    def flush() -> None:
        if waiting:
            parts.append(encode(encoder, torch.cat(waiting), batch))
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
    return torch.cat(parts).view(len(streams), len(views), count, encoder.dim)


def pick_views(bank: Tensor, streams: Sequence[Stream], epoch: int) -> Tensor:
    """One view of every image, drawn at random: ``(P, n, d)`` out of a bank ``(P, V, n, d)``."""
    _, views, count, _ = bank.shape
    drawn = [torch.randint(views, (count,), generator=stream.generator("pick", epoch)) for stream in streams]
    choice = torch.stack(drawn).to(bank.device)
    probe = torch.arange(len(streams), device=bank.device)[:, None]
    return bank[probe, choice, torch.arange(count, device=bank.device)]
