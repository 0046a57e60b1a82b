"""Words for what tables hold as codes."""

from __future__ import annotations

__all__ = ["views_in_words"]


def views_in_words(views: str, of_each: bool = True) -> str:
    """The ``views`` column in words: which images the probe was trained on."""
    kind, _, count = views.partition("-")
    if kind == "bank" and count.isdigit():
        return f"{int(count):,} augmented views{' of each image' if of_each else ''}"
    return {"fresh": "images augmented afresh every epoch", "clean": "images as they are"}.get(views, views)
