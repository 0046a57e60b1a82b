"""The gradient of a loss of features with respect to image parameters, in memory that does not grow with the images.

Encoders treat images one by one, so the chain rule splits at the features: their gradient ``dL/dZ`` needs all features
but no graph of the encoder, and every chunk of images needs its own rows of ``dL/dZ`` alone. Plain tensors and
callables in and out; needs nothing but torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from .augment import Augmentation, add_noise, crop_and_flip, draw
from .gradients import gradients
from .resample import resize
from .seeding import generator

__all__ = ["Chunk", "Images", "StepResult", "Views", "features", "step"]

Encode = Callable[[Tensor], Tensor]
"""Pixels ``(b, 3, s, s)`` in [0, 1] to features ``(b, d)`` float32, image by image."""

_NOISE_BLOCK = 16  # images whose noise is drawn at once: part of what is drawn, so a constant and not a setting


@dataclass(frozen=True)
class Views:
    """Augmented views of ``total`` images.

    Every choice is a function of (seed, path, view, image): how the images are cut into chunks changes nothing.
    Crops are drawn on the CPU; noise, which is as large as the views, on ``device``.

    Attributes:
        total: number of images ``n`` of the whole set.
        count: views of every image.
        size: side of a view in pixels.
        settings: the augmentation; ``None`` leaves the images as they are but for their size.
        seed, path: what the random choices are a function of, e.g. ``("augment", step)``.
        device: where the images are.
        rough: make crops in the quickest way, see ``clpdd.functional.augment.crop_and_flip`` (CUDA alone).
    """

    total: int
    count: int
    size: int
    settings: Augmentation | None
    seed: int
    path: tuple[str | int, ...]
    device: torch.device
    rough: bool = False

    @cached_property
    def _choices(self) -> Tensor:
        """``(count, 5, total)`` float32 on the device."""
        assert self.settings is not None
        drawn = [draw(self.total, self.settings, generator(self.seed, *self.path, v)) for v in range(self.count)]
        return torch.stack(drawn).to(self.device)

    def of(self, images: Tensor, rows: range, views: range | None = None) -> Tensor:
        """Views ``(len(views) * c, 3, size, size)``, view by view, of images ``(c, 3, h, w)`` with numbers ``rows``.

        ``views`` are the numbers of the views; ``None`` takes all.
        """
        if self.settings is None:
            return resize(images, self.size)
        made = []
        for view in views or range(self.count):
            choices = self._choices[view, :, rows.start : rows.stop]
            pixels = crop_and_flip(images, self.size, self.settings, choices, rough=self.rough)
            if self.settings.noise:
                pixels = add_noise(pixels, self.settings, choices, self._noise(view, rows))
            made.append(pixels)
        return torch.cat(made) if len(made) > 1 else made[0]

    def _noise(self, view: int, rows: range) -> Tensor:
        """``(len(rows), 3, size, size)`` standard normal, cut out of blocks of a fixed number of images."""
        first, last = rows.start // _NOISE_BLOCK, (rows.stop - 1) // _NOISE_BLOCK
        shape = (_NOISE_BLOCK, 3, self.size, self.size)
        blocks = []
        for block in range(first, last + 1):
            chosen = generator(self.seed, *self.path, view, "noise", block, device=self.device)
            blocks.append(torch.randn(shape, generator=chosen, device=self.device))
        start = rows.start - first * _NOISE_BLOCK
        return torch.cat(blocks)[start : start + len(rows)]


class Chunk(Protocol):
    """Some of the images, as parameters on the device."""

    @property
    def rows(self) -> range:
        """Their numbers among all images."""

    @property
    def levels(self) -> Sequence[Tensor]:
        """Their parameters, image by image along the first axis."""


ChunkT = TypeVar("ChunkT", bound=Chunk)
ChunkT_co = TypeVar("ChunkT_co", bound=Chunk, covariant=True)


class Images(Protocol[ChunkT_co]):
    """Images held as parameters, read and updated some at a time."""

    def __len__(self) -> int: ...

    def chunks(self, size: int, update: bool = False) -> Iterator[ChunkT_co]:
        """All images in chunks of ``size``. With ``update``, a chunk is written back when the next is asked for."""

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """Pixels ``(c, 3, s, s)`` in [0, 1] of parameters, differentiable in them."""


@dataclass(frozen=True)
class StepResult:
    """What a step found, as scalars on the device: reading them waits for it."""

    loss: Tensor
    finite: Tensor
    """Whether the loss and the gradient of every pixel are finite numbers."""


def step(
    encode: Encode,
    images: Images[ChunkT],
    views: Views,
    loss: Callable[[Tensor], Tensor],
    batch: int,
    update: Callable[[ChunkT, Sequence[Tensor]], None],
    kept: int = 0,
) -> StepResult:
    """Take the gradient of ``loss`` with respect to the parameters of all images and hand it to ``update``.

    Where all views fit into one pass of the encoder, its graph is kept. Elsewhere the same gradient is taken in two
    passes: all features without a graph, the loss's gradient with respect to them, then chunk by chunk the features
    again with a graph, through which their gradient is pulled back. Neither pixels nor views nor their gradients
    ever exist for more than one chunk, but for those first chunks whose graphs are ``kept`` from the first pass, which
    are not encoded a second time.

    Args:
        loss: scalar at features ``Z (count * n, d)``, view by view; ``n`` are the images that ``images`` holds.
        batch: views in a pass of the encoder.
        update: called with a chunk and its parameters' gradients, once for every chunk.
        kept: views whose graphs there is memory for; whole chunks are kept.
    """
    if len(images) * views.count <= batch:
        return _one_pass(encode, images, views, loss, update)
    held: deque[_Held] = deque()
    Z = _features(encode, images, views, batch, kept, held).requires_grad_()
    value = loss(Z)
    (pull,) = torch.autograd.grad(value, Z)
    pull = pull.view(views.count, len(images), -1)
    finite = torch.isfinite(value.detach()) & torch.isfinite(pull).all()
    done = 0
    for chunk in images.chunks(max(1, batch // views.count), update=True):
        opened = held.popleft() if held else _Held(*_open(images, chunk), [])
        gradient = torch.zeros_like(opened.leaf)
        for number, some in enumerate(_groups(views.count, batch)):
            Z = opened.Z[number] if opened.Z else encode(views.of(opened.leaf, chunk.rows, some))
            wanted = pull[some.start : some.stop, done : done + len(gradient)].flatten(0, 1)
            gradient += torch.autograd.grad(Z, opened.leaf, wanted)[0]
        finite = finite & torch.isfinite(gradient).all()
        update(chunk, gradients(opened.pixels, opened.levels, gradient))
        done += len(gradient)
        del opened, Z  # before the next is opened: its graph takes their place
    return StepResult(value.detach(), finite)


def _one_pass(
    encode: Encode,
    images: Images[ChunkT],
    views: Views,
    loss: Callable[[Tensor], Tensor],
    update: Callable[[ChunkT, Sequence[Tensor]], None],
) -> StepResult:
    outcome = None
    for chunk in images.chunks(len(images), update=True):
        levels, pixels, leaf = _open(images, chunk)
        value = loss(encode(views.of(leaf, chunk.rows)))
        (gradient,) = torch.autograd.grad(value, leaf)
        outcome = StepResult(value.detach(), torch.isfinite(value.detach()) & torch.isfinite(gradient).all())
        update(chunk, gradients(pixels, levels, gradient))
    assert outcome is not None
    return outcome


@dataclass(frozen=True)
class _Held:
    """A chunk on its way: see ``_open``; and the features of its groups of views, where their graphs are kept."""

    levels: list[Tensor]
    pixels: Tensor
    leaf: Tensor
    Z: list[Tensor]


def _open(images: Images[ChunkT], chunk: ChunkT) -> tuple[list[Tensor], Tensor, Tensor]:
    """Levels (requiring grad), the pixels decoded from them, and a detached copy of the pixels that requires grad."""
    levels = [level.detach().requires_grad_() for level in chunk.levels]
    pixels = images.decode(levels)
    return levels, pixels, pixels.detach().requires_grad_()


def _groups(count: int, batch: int) -> Iterator[range]:
    """The numbers of the views in runs of at most ``batch``."""
    for start in range(0, count, batch):
        yield range(start, min(start + batch, count))


def features(encode: Encode, images: Images[ChunkT], views: Views, batch: int) -> Tensor:
    """Features ``(count * n, d)`` of all views, view by view, without a graph."""
    return _features(encode, images, views, batch, 0, deque())


@torch.no_grad()
def _features(
    encode: Encode, images: Images[ChunkT], views: Views, batch: int, kept: int, held: deque[_Held]
) -> Tensor:
    """The same, and in ``held`` the graphs of those first chunks whose views are no more than ``kept`` together."""
    made: Tensor | None = None  # filled in place: joining parts would hold everything twice
    done = 0
    for chunk in images.chunks(max(1, batch // views.count)):
        keeps = (done + len(chunk.rows)) * views.count <= kept
        if keeps:
            with torch.enable_grad():
                held.append(_Held(*_open(images, chunk), []))
        pixels = held[-1].leaf if keeps else images.decode(chunk.levels)
        for some in _groups(views.count, batch):
            with torch.set_grad_enabled(keeps):
                Z = encode(views.of(pixels, chunk.rows, some))
            if keeps:
                held[-1].Z.append(Z)
            if made is None:
                made = Z.new_empty(views.count, len(images), Z.shape[-1])
            made[some.start : some.stop, done : done + len(pixels)] = Z.detach().view(len(some), len(pixels), -1)
        done += len(pixels)
    assert made is not None
    return made.flatten(0, 1)
