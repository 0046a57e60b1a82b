"""Batches of decoded images through an encoder, to features as they are stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.index import Index
from ..encoders.calling import encode
from ..encoders.encoder import Encoder
from ..errors import NumericalError
from ..runtime.machine import explain_memory_errors
from .decoders import Decoders
from .decoding import Batch, choose_workers, decode_rows

if TYPE_CHECKING:
    from ..config.cache import CacheSettings

__all__ = ["BatchEncoder"]

log = logging.getLogger(__name__)


class BatchEncoder:
    """Encodes batches of the images of one split.

    Args:
        index: the split.
        encoder: the frozen encoder, on the device to encode on.
        settings: dtype of the features handed out, which are ``(b, d)``, precision of the encoder, decoding of JPEG.

    Attributes:
        preprocess: what images go through before the encoder, and how they are decoded.
    """

    def __init__(self, index: Index, encoder: Encoder, settings: CacheSettings) -> None:
        self.index, self.encoder, self.precision = index, encoder, settings.precision
        self.preprocess = replace(encoder.preprocess, jpeg=settings.jpeg)
        self.dtype = np.dtype(settings.dtype)
        self._out_of_memory = f"lower cache.batch_size (now {settings.batch_size}); finished shards are kept"

    def trial(self, batches: list[Batch], cores: int, decoders: Decoders) -> tuple[list[tuple[int, NDArray[Any]]], int]:
        """Batches encoded for a measurement, as ``encoded`` gives them, and how many processes are to decode the rest.

        Their number, at most ``cores``, keeps the encoder busy, going by ``decoders.batch_seconds``. Where that is not
        known, two batches are decoded and encoded here, and the second tells: the first warms up. What it tells is kept
        for the splits to come only where more batches follow, since the last one may be short.
        """
        done: list[tuple[int, NDArray[Any]]] = []
        seconds = decoders.batch_seconds
        if seconds is None:
            for first, last in batches[:2]:
                began = time.monotonic()
                pixels = decode_rows(self.index, self.preprocess, first, last)
                decoded = time.monotonic()
                done.append((first, self._features(*self._launch(pixels), first)))
                seconds = decoded - began, time.monotonic() - decoded
        rest = len(batches) - len(done)
        if seconds is None or not rest:
            return done, 0
        decoders.batch_seconds = seconds
        workers = choose_workers(*seconds, rest, cores)
        if workers > len(decoders):
            log.info("a batch takes %.3f s to decode and %.3f s to encode: decoding in %d processes", *seconds, workers)
        return done, max(workers, len(decoders))  # those that have started need not start

    def encoded(self, decoded: Iterator[NDArray[np.uint8]], batches: list[Batch]) -> Iterator[tuple[int, NDArray[Any]]]:
        """First row and features of every batch; on a device the next batch is under way while one is fetched."""
        under_way: tuple[Tensor, torch.cuda.Event | None, int] | None = None
        for first, _ in batches:
            launched = (*self._launch(next(decoded)), first)
            if under_way is not None:
                yield under_way[-1], self._features(*under_way)
            under_way = launched
        if under_way is not None:
            yield under_way[-1], self._features(*under_way)

    def _launch(self, pixels: NDArray[np.uint8]) -> tuple[Tensor, torch.cuda.Event | None]:
        """Features ``(b, d)`` float32 in host memory, whole once the event has happened."""
        device, images = self.encoder.device, torch.from_numpy(pixels)
        with torch.inference_mode(), explain_memory_errors(self._out_of_memory):
            if device.type != "cuda":
                return encode(self.encoder, images, len(images), self.precision).cpu(), None
            images = images.pin_memory().to(device, non_blocking=True)
            features = encode(self.encoder, images, len(images), self.precision)
            fetched = torch.empty_like(features, device="cpu", pin_memory=True).copy_(features, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            return fetched, event

    def _features(self, launched: Tensor, event: torch.cuda.Event | None, first: int) -> NDArray[Any]:
        """What was launched for the rows from ``first`` on, in the dtype of the store, checked."""
        with explain_memory_errors(self._out_of_memory):
            if event is not None:
                event.synchronize()
        wide = launched.numpy()
        with np.errstate(over="ignore"):
            features = wide.astype(self.dtype)
        unusable = ~np.isfinite(features).all(axis=1)
        if unusable.any():
            at = int(unusable.argmax())
            name = self.index.ids[first + at]
            if np.isfinite(wide[at]).all():
                raise NumericalError(
                    f"image {name!r} of the {self.index.split} split has a feature of {np.abs(wide[at]).max():.4g}, "
                    f"beyond the range of float16 (65504): set cache.dtype: float32"
                )
            raise NumericalError(
                f"encoder {self.encoder.name!r} gives NaN or infinite features for image {name!r} of the "
                f"{self.index.split} split: check its weights, or whether that image is sound (cache.dtype: float32 "
                f"does not help here)"
            )
        return features
