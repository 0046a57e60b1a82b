"""Randomness as a function of (seed, step): nothing of a generator's history ever needs saving."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. ``generator(seed, "augment", step)``.

    Distinct paths give independent streams; the same path always gives the same one.
    """
    text = "\0".join(map(str, (seed, *path)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return torch.Generator().manual_seed(number)
