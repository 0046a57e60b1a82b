"""What evaluation writes: the result table, metrics, details and plot data, as bytes without a clock in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalogue.protocols import bound_of
from ..storage.files import canonical_json, compact_json
from .confusion import entries, totals
from .subject import ViewedProtocol

__all__ = ["SCHEMA", "Result", "details_json", "metrics_json", "plot_csv", "results_parquet"]

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("method", pa.string()),
        ("made_by", pa.string()),  # the method itself, where ``method`` is a variant's name
        ("distil_encoder", pa.string()),
        ("eval_encoder", pa.string()),
        ("protocol", pa.string()),
        ("views", pa.string()),
        ("ipc", pa.int64()),  # null: all training images
        ("seed", pa.int64()),
        ("draw", pa.int64()),
        ("top1", pa.float64()),
        ("top5", pa.float64()),
        ("mean_per_class", pa.float64()),  # mean of the classes' top-1
        ("worst_group", pa.float64()),  # null: the dataset has no groups
        ("fingerprint", pa.string()),
    ]
)

_ALL_MATRICES = 200  # with more classes only the first protocol's confusion is kept


@dataclass(frozen=True, kw_only=True)
class Result:
    """One protocol on one set with one encoder.

    ``method`` is what the set goes by, ``made_by`` the method in the catalogue. ``fingerprint`` is the digest of
    ``record``, everything that decided the result; ``piece`` is what ``run_protocol`` returned. ``counts`` are the
    images of every class in one draw, ``None`` of a set that stands for all real ones.
    """

    dataset: str
    method: str
    made_by: str
    distil: str
    target: str
    protocol: ViewedProtocol
    counts: tuple[int, ...] | None
    fingerprint: str
    record: dict[str, Any]
    piece: dict[str, Any]

    @property
    def ipc(self) -> int | None:
        """Images per class; where classes differ in number, the mean rounded down."""
        return None if self.counts is None else sum(self.counts) // len(self.counts)

    @property
    def pair(self) -> str:
        """The encoders by name: one where images are distilled and evaluated with the same one."""
        return self.distil if self.distil == self.target else f"{self.distil} -> {self.target}"

    @property
    def top1(self) -> list[float]:
        """Top-1 of every probe in percent."""
        return [row["top1"] for row in self.piece["rows"]]

    @property
    def groups(self) -> dict[str, float]:
        """Top-1 of every group of test images, mean over the probes; empty without groups."""
        found: dict[str, float] = self.piece.get("groups", {})
        return found

    @property
    def std(self) -> float:
        """Sample standard deviation of top-1; 0 of a single probe."""
        return stdev(self.top1) if len(self.top1) > 1 else 0.0

    @property
    def names(self) -> dict[str, str]:
        """The columns that tell results apart."""
        return {
            "method": self.method,
            "distil_encoder": self.distil,
            "eval_encoder": self.target,
            "protocol": self.protocol.name,
            "views": self.protocol.views,
        }


def results_parquet(results: Sequence[Result]) -> bytes:
    """One row for each probe, in the order of the results; columns as in ``SCHEMA``."""
    rows = [
        {"dataset": r.dataset, "made_by": r.made_by, "ipc": r.ipc, "worst_group": None, "fingerprint": r.fingerprint}
        | r.names
        | row
        for r in results
        for row in r.piece["rows"]
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def metrics_json(results: Sequence[Result]) -> bytes:
    """``{encoders: {method: {protocol-views: {top1, top1_std, top5, mean_per_class, ...}}}}``, percent, four decimals.

    ``worst_group`` stands beside them where the images have groups. ``share_of_full`` is top-1 in percent of that of
    all training data with the same evaluation encoder: its ridge probe for ``closed_form``, its logistic regression for
    the other protocols. ``over_random`` is top-1 less that of the method ``random`` or a variant of it, where one is
    among the methods with as many images of every class, the same encoders, protocol and views.
    """
    bound = {(r.target, r.protocol.name): fmean(r.top1) for r in results if r.method == "full"}
    drawn = {(r.pair, r.protocol, r.counts): fmean(r.top1) for r in results if r.made_by == "random"}
    tree: dict[str, Any] = {}
    for r in results:
        numbers = {"top1": fmean(r.top1), "top1_std": r.std}
        numbers |= {name: fmean(row[name] for row in r.piece["rows"]) for name in ("top5", "mean_per_class")}
        if r.groups:
            numbers["worst_group"] = fmean(row["worst_group"] for row in r.piece["rows"])
        best = bound.get((r.target, bound_of(r.protocol.name)))
        if best and r.method != "full":
            numbers["share_of_full"] = 100 * numbers["top1"] / best
        chance = drawn.get((r.pair, r.protocol, r.counts))
        if chance is not None and r.made_by != "random":
            numbers["over_random"] = numbers["top1"] - chance
        leaf = {name: round(number, 4) for name, number in numbers.items()}
        tree.setdefault(r.pair, {}).setdefault(r.method, {})[str(r.protocol)] = leaf
    return canonical_json(tree).encode()


def details_json(results: Sequence[Result], class_names: list[str], counts: list[int]) -> bytes:
    """Per-class accuracy and confusion, one row for each result.

    A row holds the columns of ``Result.names``, ``probes`` (how many were trained), ``per_class`` (percent, ``null``
    for a class without test images), ``confusion`` (counts summed over the probes, rows the true class; with more than
    200 classes the pairs that occur, ``evaluation.confusion``, and ``null`` for all but the first protocol of a set),
    ``notes`` and, where the images have groups, ``groups`` (top-1 of each, mean over the probes). ``fingerprints``
    resolves those of the result table to settings, versions, code and digests of the inputs.

    Args:
        counts: test images of every class.
    """
    rows = []
    seen: set[tuple[str, str, str]] = set()
    for r in results:
        matrix = r.piece["confusion"]
        right = dict.fromkeys(range(len(class_names)), 0) | {i: n for i, j, n in entries(matrix) if i == j}
        per_class = [100 * right[i] / n if n else None for i, n in enumerate(totals(matrix, len(class_names)))]
        key = (r.distil, r.method, r.target)
        kept = len(class_names) <= _ALL_MATRICES or key not in seen
        seen.add(key)
        found = {"per_class": per_class, "confusion": matrix if kept else None, "notes": r.piece["notes"]}
        grouped = {"groups": r.groups} if r.groups else {}
        rows.append(r.names | {"probes": len(r.top1)} | found | grouped)
    known = {r.fingerprint: r.record for r in results}
    facts = {"format": 1, "class_names": class_names, "test_images": counts, "rows": rows, "fingerprints": known}
    return f"{compact_json(facts)}\n".encode()


def plot_csv(results: Sequence[Result]) -> bytes:
    """Mean and standard deviation of top-1 for ``dvc plots``: one line for each result.

    ``result`` names each line by itself: bars of one name would be stacked.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["result", "encoders", "method", "protocol", "top1", "std"])
    several = len({r.pair for r in results}) > 1
    for r in results:
        name = f"{r.method}, {r.protocol}{f', {r.pair}' if several else ''}"
        writer.writerow([name, r.pair, r.method, str(r.protocol), round(fmean(r.top1), 4), round(r.std, 4)])
    return text.getvalue().encode()
