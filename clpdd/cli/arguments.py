"""Types of command line arguments, for ``argparse``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["whole_number"]


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """A whole number from ``low`` on, up to ``high`` where one is given; others are refused with these words."""
    allowed = f"from {low} on" if high is None else f"from {low} to {high}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {allowed}")
        return int(text)

    return parse
