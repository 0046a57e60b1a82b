"""The result table as lines: one for each method, encoder, probe and kind of views, sorted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..catalogue.methods import selects
from ..catalogue.protocols import bound_of
from .data import KEYS, full_accuracy, gains_over_random, mean_std, read_table

__all__ = ["COLUMNS", "headline_of", "result_lines", "tells_mean_per_class", "tells_top5"]

_MORE = ("top5", "mean_per_class", "worst_group")
COLUMNS = (*KEYS, "ipc", "probes", "top1", "top1_std", "share_of_full", "over_random", *_MORE, "headline")
"""Keys of a line: names; images per class; probes it is the mean of; percent, ``None`` where there is no value; whether
it is *the* number (``headline_of``), which one line at most is. ``mean_per_class`` is the mean of the classes' top-1,
``worst_group`` the lowest top-1 of any group of test images; ``over_random`` is top-1 less that of as many random real
images under the same protocol and views, in points, where the method ``random`` or a variant of it was evaluated.
"""


def result_lines(path: Path) -> list[dict[str, Any]]:
    """Summarise ``results.parquet``: lines with the keys ``COLUMNS``.

    They are sorted by the evaluating encoder, then by probe (in the order of the settings, the headline's first, each
    with the probe on all training images that bounds it), by views, and from the highest top-1 to the lowest.
    ``share_of_full`` is top-1 in percent of that bound's. ``over_random`` is read from the ``metrics.json`` beside
    the file; ``None`` where there is none.

    Raises ``ArtifactError`` when the file is missing, damaged or empty.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in read_table(path).to_pylist():
        if row["method"] != "full" or row["distil_encoder"] == row["eval_encoder"]:  # who distils matters not to it
            groups.setdefault(tuple(row[key] for key in KEYS), []).append(row)
    summary = [dict(zip(KEYS, key, strict=True)) | _scores(rows) for key, rows in groups.items()]
    gains = gains_over_random(path.with_name("metrics.json"))
    lines = []
    for line in summary:
        best = full_accuracy(summary, line["eval_encoder"], line["protocol"])
        top1, spread = line["top1"]["mean"], line["top1"]["std"]
        share = round(100 * top1 / best, 6) if best and top1 is not None and line["method"] != "full" else None
        more = {"share_of_full": share, "over_random": gains.get(tuple(line[key] for key in KEYS)), "headline": False}
        lines.append(line | {"top1": top1, "top1_std": spread} | more)
    number = _number(lines)
    if number is not None:
        number["headline"] = True
    return [{name: line[name] for name in COLUMNS} for line in _sorted(lines)]


def _scores(rows: list[dict[str, Any]]) -> dict[str, Any]:
    first = rows[0]
    scores: dict[str, Any] = {
        "ipc": first["ipc"],
        "probes": len(rows),
        "made_by": first.get("made_by", first["method"]),
    }
    scores["top1"] = mean_std(row["top1"] for row in rows)
    return scores | {name: mean_std(row.get(name) for row in rows)["mean"] for name in _MORE}


def _sorted(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    encoders = list(dict.fromkeys(line["eval_encoder"] for line in lines))
    protocols = list(dict.fromkeys(line["protocol"] for line in lines if line["method"] != "full"))

    def place(line: dict[str, Any]) -> tuple[Any, ...]:
        block = next((p for p in protocols if line["method"] == "full" and bound_of(p) == line["protocol"]), None)
        block = block or line["protocol"]
        number = protocols.index(block) if block in protocols else len(protocols)
        views = "" if line["method"] == "full" else line["views"]
        best = -line["top1"] if line["top1"] is not None else 1.0
        return encoders.index(line["eval_encoder"]), number, views == "clean", views, best

    return sorted(lines, key=place)


def tells_top5(lines: list[dict[str, Any]]) -> bool:
    """Whether top-5 says anything: of five classes or fewer it is always 100 %."""
    return any(line["top5"] is not None and line["top5"] < 100 for line in lines)


def tells_mean_per_class(lines: list[dict[str, Any]], digits: int = 2) -> bool:
    """Whether mean-per-class accuracy differs from top-1 when both are rounded to ``digits``: not where every class has
    as many test images.
    """
    known = [(line["mean_per_class"], line["top1"]) for line in lines]
    return any(None not in pair and abs(pair[0] - pair[1]) >= 0.5 * 10**-digits for pair in known)


def headline_of(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The line that is *the* number; ``None`` where nothing but all training images was evaluated.

    It is fixed before anything is evaluated: the first method of the settings that makes images, judged by the first
    probe of the settings with the encoder the images were made with. By default that is ``sgd`` on augmented views, the
    protocol of the field: the only one of the probes with which numbers of papers compare, and the lowest. The best of
    several probes would be chosen on the test images, or be another one for each method of a table.
    """
    return next((line for line in lines if line["headline"]), None)


def _number(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of lines in the order of the settings, the one that ``headline_of`` describes."""
    own = [line for line in lines if line["method"] != "full" and line["distil_encoder"] == line["eval_encoder"]]
    made = next((line["method"] for line in own if not selects(line["made_by"])), own[0]["method"] if own else "")
    mine = [line for line in own if line["method"] == made]
    found = [line for line in mine if all(line[key] == mine[0][key] for key in ("eval_encoder", "protocol"))]
    return min(found, key=lambda line: (line["views"] == "clean", line["views"]), default=None)
