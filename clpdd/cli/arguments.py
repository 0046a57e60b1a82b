"""Types of command line arguments, for ``argparse``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["DATA", "PARAMS", "options_of_encoder", "settle", "whole_number"]

PARAMS, DATA = Path("params.yaml"), Path("data")
"""Where settings and artifacts are looked for. The very object ``PARAMS`` says that no file was named."""


def settle(options: argparse.Namespace) -> argparse.Namespace:
    """Where no settings file is named and none lies here, take the one that a whole run left with its artifacts."""
    left = options.data / PARAMS
    options.named = options.params is not PARAMS
    if options.command != "run" and not options.named and not PARAMS.exists() and left.exists():
        options.params = left
    return options


def options_of_encoder(options: argparse.Namespace) -> dict[str, Any]:
    """What ``--model``, ``--weights`` and ``--image-size`` say of the encoder, as ``encoder_options`` would."""
    weights = None if options.weights is None else str(options.weights)
    wanted = {"model": options.model, "weights": weights, "image_size": options.image_size}
    return {key: value for key, value in wanted.items() if value is not None}


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from ``low`` on, up to ``high`` where one is given; others are refused with these words."""
    allowed = f"from {low} on" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {allowed}")
        return int(text)

    return parse
