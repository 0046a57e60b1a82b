"""What an index holds, in words: images, classes and splits, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.dataset import DatasetSettings
from ..storage.layout import SPLITS

__all__ = ["counts_in_words", "left_out_in_words"]


def counts_in_words(summary: Mapping[str, Any], settings: DatasetSettings) -> list[str]:
    """Lines for ``summary.json``: what there is, and what of the settings bounds it."""
    splits = {split: summary["splits"][split] for split in SPLITS}
    total = sum(split["images"] for split in splits.values())
    parts = [f"{found['images']:,} {split} ({_each(found['classes'])})" for split, found in splits.items()]
    classes = len(summary["class_names"])
    lines = [f"{summary['dataset']}: {total:,} images of {classes:,} classes: {', '.join(parts)}"]
    limits = settings.max_per_class.model_dump(exclude_none=True)
    if limits:
        kept = ", ".join(f"{limit:,} of {split}" for split, limit in limits.items())
        lines.append(f"dataset.max_per_class keeps of each class, drawn at random: {kept}")
    return lines


def _each(counts: Mapping[str, int]) -> str:
    """How many a class has: ``7 a class``, ``5 to 9 a class``."""
    least, most = min(counts.values()), max(counts.values())
    return f"{least:,} a class" if least == most else f"{least:,} to {most:,} a class"


def left_out_in_words(summary: Mapping[str, Any], where: Path) -> list[str]:
    """Lines for what is not among the images, or twice among them; none where there is nothing to say.

    Args:
        summary: of ``summary.json``.
        where: that file.
    """
    lines = []
    skipped, repeated = summary["skipped"], summary["duplicates"]
    if skipped:
        first = skipped[0]
        lines.append(
            f"left out as bad: {len(skipped):,}, e.g. {first['id']}, which {first['reason']} ({where} lists them)"
        )
    across, within = sum(repeated["across_splits"].values()), sum(repeated["within_split"].values())
    if across and repeated["policy"] == "drop":
        lines.append(f"left out of the earlier split, because a later one has them too: {across:,}")
    elif across:
        lines.append(f"kept in two splits, so that scores are too good (dataset.duplicates: allow): {across:,}")
    if within:
        lines.append(f"the same file as another of its split, and kept: {within:,}")
    contradictory = repeated.get("two_classes", {"images": 0})  # an older summary does not say
    if contradictory["images"]:
        one, other = contradictory["pairs"][0]
        listed = "them" if contradictory["images"] == len(contradictory["pairs"]) else "the first of them"
        lines.append(
            f"the same file under two classes, so that one of the labels is wrong: {contradictory['images']:,}, "
            f"e.g. {one} and {other} ({where} lists {listed})"
        )
    return lines
