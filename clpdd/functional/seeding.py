"""Randomness as a function of (seed, step): nothing of a generator's history ever needs saving."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator"]


def generator(seed: int, *path: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose, e.g. ``generator(seed, "augment", step)``.

    Distinct paths give independent streams; the same path always gives the same one. Streams of other kinds of
    device than the CPU differ from the CPU's.
    """
    text = "\0".join(map(str, (seed, *path)))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return torch.Generator(device).manual_seed(number)
