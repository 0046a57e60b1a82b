"""What the page says, as numbers: read from the artifacts, never from a clock."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..catalogue.methods import METHODS
from ..catalogue.protocols import PROTOCOLS, bound_of
from ..config.settings import Settings
from ..distilled.reading import StoredSet, read_set
from ..errors import ArtifactError
from ..storage.files import read_json, sha256_file, sha256_tree
from ..storage.layout import Layout
from .classes import confusion, per_class
from .titles import dataset_title
from .transfer import cross

__all__ = [
    "BOUNDS",
    "KEYS",
    "MOST_ENCODED",
    "TITLES",
    "Sources",
    "gains_over_random",
    "gather",
    "read_mapping",
    "read_sources",
    "read_table",
]

TITLES = {name: known.title for name, known in METHODS.items()} | {
    "clp-no-dsa": "CLP-DD without augmentation",
    "clp-mse": "CLP-DD by squared error",
    "clp-cosine": "CLP-DD by cosine",
    "lgm-no-dsa": "LGM without augmentation",
}
"""Names of the methods for people; a method that is not listed goes by its own name."""

BOUNDS = {name: entry.bound for name, entry in PROTOCOLS.items() if entry.bound}
"""The probe on all training images that a protocol is measured against; its namesake where none is listed."""

MOST_ENCODED = 2000
"""Images of a set; more are not encoded for a page."""

KEYS = ("method", "distil_encoder", "eval_encoder", "protocol", "views")
_COLUMNS = ("dataset", *KEYS, "ipc", "seed", "top1", "top5", "worst_group", "fingerprint")


@dataclass(frozen=True)
class Sources:
    """The artifacts a report is made from, read but not yet summarised.

    Attributes:
        sets: distilled dataset of each (encoder, method), in the order of the settings.
        results: rows of ``results.parquet``.
        gains: of ``gains_over_random``.
        details: ``details.json``: per-class accuracy and confusion of the probes.
        kernels: ``kernels.json`` of each encoder.
        digests: SHA-256 of every artifact, by its path below the data folder.
    """

    sets: dict[tuple[str, str], StoredSet]
    results: list[dict[str, Any]]
    gains: dict[tuple[str, ...], float]
    details: dict[str, Any]
    kernels: dict[str, dict[str, Any]]
    digests: dict[str, str]


def read_sources(layout: Layout, settings: Settings) -> Sources:
    """Read everything the report needs. Raises ``ArtifactError`` naming the first file that is missing or damaged."""
    sets: dict[tuple[str, str], StoredSet] = {}
    digests: dict[str, str] = {}
    for encoder in settings.encoders:
        for method in settings.methods:
            folder = layout.distilled(encoder, method)
            sets[encoder, method] = read_set(folder)
            digests[folder.relative_to(layout.root).as_posix()] = sha256_tree(folder)
    kernels: dict[str, dict[str, Any]] = {}
    for encoder in settings.encoders:
        file = layout.kernels(encoder) / "kernels.json"
        kernels[encoder] = read_mapping(file)
        digests[file.relative_to(layout.root).as_posix()] = sha256_file(file)
    for name in ("results.parquet", "details.json"):
        file = layout.results / name
        if not file.is_file():
            raise ArtifactError(f"{file} does not exist: run the stage evaluate")
        digests[file.relative_to(layout.root).as_posix()] = sha256_file(file)
    metrics = layout.results / "metrics.json"
    if metrics.exists():
        digests[metrics.relative_to(layout.root).as_posix()] = sha256_file(metrics)
    details, gains = read_mapping(layout.results / "details.json"), gains_over_random(metrics)
    return Sources(sets, _read_results(layout.results / "results.parquet"), gains, details, kernels, digests)


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file that must hold a mapping. Raises ``ArtifactError``."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} holds {type(value).__name__}, not a mapping: run the stage that makes it again")
    return value


def read_table(path: Path) -> pa.Table:
    """``results.parquet``. Raises ``ArtifactError`` when it is missing, damaged, empty or lacks a column."""
    try:
        with pq.ParquetFile(path) as file:  # read_table would import pandas
            table = file.read()
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist: run the stage evaluate") from error
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is damaged ({error}): delete it and run the stage evaluate") from error
    absent = [name for name in _COLUMNS if name not in table.column_names]
    if absent:
        raise ArtifactError(f"{path} lacks the columns {', '.join(absent)}: delete it and run the stage evaluate")
    if not table.num_rows:
        raise ArtifactError(f"{path} holds no rows: run the stage evaluate again")
    return table


def _read_results(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def gains_over_random(metrics: Path) -> dict[tuple[str, ...], float]:
    """``over_random`` in ``metrics.json``: top-1 less that of as many random real images, in points, by ``KEYS``.

    Empty where there is no such file, and where the method ``random`` was not evaluated. Raises ``ArtifactError`` when
    the file is damaged.
    """
    found: dict[tuple[str, ...], float] = {}
    for pair, methods in (read_mapping(metrics) if metrics.exists() else {}).items():
        distilled, _, evaluated = pair.partition(" -> ")
        for method, leaves in methods.items():
            for protocol, leaf in leaves.items():
                name, _, views = protocol.partition("-")
                if "over_random" in leaf:
                    found[method, distilled, evaluated or distilled, name, views] = leaf["over_random"]
    return found


# -- summaries -------------------------------------------------------------------------------------------------------


def mean_std(values: Iterable[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation (``None`` below two values) of the finite ones among ``values``."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return {
        "mean": round(fmean(known), 6) if known else None,
        "std": round(stdev(known), 6) if len(known) > 1 else None,
    }


def summarise(
    rows: list[dict[str, Any]], settings: Settings, gains: Mapping[tuple[str, ...], float] | None = None
) -> list[dict[str, Any]]:
    """One line per (method, distil encoder, eval encoder, protocol, views), in the order of the settings.

    ``share_of_full`` is the mean top-1 in percent of that of the method ``full`` with the same eval encoder and the
    protocol's bound (``BOUNDS``); ``None`` without such a row. ``full`` distils nothing, so of its rows only those with
    equal encoders are kept: the others repeat them. ``over_random`` is taken from ``gains`` (``gains_over_random``).
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["method"] != "full" or row["distil_encoder"] == row["eval_encoder"]:
            groups.setdefault(tuple(str(row[key]) for key in KEYS), []).append(row)
    protocols = [name for p in settings.evaluate.protocols for name in (p, bound_of(p))]
    order: dict[str, list[Any]] = {"method": list(settings.methods), "protocol": protocols}
    order |= {"distil_encoder": settings.encoders, "eval_encoder": settings.encoders}
    summary: list[dict[str, Any]] = []
    for key, members in groups.items():
        line: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        line |= {"ipc": members[0]["ipc"], "runs": len(members)}
        line |= {name: mean_std(m[name] for m in members) for name in ("top1", "top5", "worst_group")}
        line["mean_per_class"] = mean_std(m.get("mean_per_class") for m in members)  # older tables lack it
        line["over_random"] = (gains or {}).get(key)
        line["fingerprints"] = sorted({str(m["fingerprint"]) for m in members})
        summary.append(line)
    summary.sort(key=lambda line: [_place(order.get(k, []), line[k]) for k in _SORT])
    for line in summary:
        full = full_accuracy(summary, line["eval_encoder"], line["protocol"])
        mean = line["top1"]["mean"]
        line["share_of_full"] = round(100 * mean / full, 6) if full and mean is not None else None
    return summary


_SORT = ("eval_encoder", "protocol", "distil_encoder", "views", "method")


def _place(order: list[Any], name: str) -> tuple[int, str]:
    return (order.index(name), "") if name in order else (len(order), name)


def full_accuracy(summary: list[dict[str, Any]], encoder: str, protocol: str) -> float | None:
    """Mean top-1 of the probe on all training images that ``protocol`` is measured against."""
    for name in (bound_of(protocol), protocol):
        for line in summary:
            if (line["method"], line["eval_encoder"], line["protocol"]) == ("full", encoder, name):
                mean: float | None = line["top1"]["mean"]
                return mean
    return None


def main_method(settings: Settings) -> str:
    """The method the page is about: the first that makes synthetic images, else the first that selects real ones."""
    chosen = [m for m in settings.methods if _synthetic(m, settings)] or [m for m in settings.methods if m != "full"]
    return chosen[0] if chosen else settings.methods[0]


def _synthetic(name: str, settings: Settings) -> bool:
    """Whether a method of the settings, or what a variant of them varies, makes images; others choose real ones."""
    return METHODS[settings.variant(name).method].optimises


def headline(summary: list[dict[str, Any]], images: int, train: int | None, settings: Settings) -> dict[str, Any]:
    """The result in numbers: *the* number of ``report.lines.headline_of``, of the main method and the first encoder."""
    method, encoder = main_method(settings), settings.encoders[0]
    own = [s for s in summary if s["method"] == method and s["distil_encoder"] == s["eval_encoder"] == encoder]
    if not own:
        raise ArtifactError(f"results.parquet has no row of {method} on {encoder}: run the stage evaluate again")
    line = own[0]  # of the first protocol of the settings
    full = full_accuracy(summary, encoder, line["protocol"])
    share = line["share_of_full"] if method != "full" else None
    synthetic = _synthetic(method, settings)
    return {
        "sentence": _sentence(images, synthetic, line["top1"]["mean"], share, train),
        "method": method,
        "synthetic": synthetic,
        "images": images,
        "train_images": train,
        "top1": line["top1"],
        "full": full,
        "share_of_full": share,
        "encoder": encoder,
        "protocol": line["protocol"],
        "views": line["views"],
    }


def _sentence(images: int, synthetic: bool, top1: float | None, share: float | None, train: int | None) -> str:
    kind = "synthetic" if synthetic else "real"
    subject = (
        f"{images:,} {kind} image{'s reach' if images != 1 else ' reaches'}" if images else "All training images reach"
    )
    sentence = f"{subject} {top1:.1f} % top-1" if top1 is not None else f"{subject} no accuracy that was measured"
    if share is None:
        return sentence + "."
    return f"{sentence}, {share:.0f} % of what all {f'{train:,} ' if train else ''}training images reach."


def curves(sets: Mapping[tuple[str, str], StoredSet]) -> list[dict[str, Any]]:
    """Loss and validation accuracy by step of every method that optimises, as lists of (step, value) pairs."""
    found = []
    for (encoder, method), distilled in sets.items():
        given = distilled.info.get("curves") or {}
        line: dict[str, Any] = {"encoder": encoder, "method": method}
        line |= {name: _pairs(given.get(name) or []) for name in ("loss", "validation_top1")}
        if line["loss"] or line["validation_top1"]:
            found.append(line | {"kept_step": distilled.info.get("kept_step")})
    return found


def _pairs(given: Iterable[Sequence[Any]]) -> list[list[float]]:
    return [[step, round(value, 6)] for step, value in given if value is not None and math.isfinite(value)]


def gather(sources: Sources, settings: Settings) -> dict[str, Any]:
    """Everything on the page that is the same whenever and wherever it is computed; this becomes ``report.json``."""
    first, method = settings.encoders[0], main_method(settings)
    chosen = sources.sets[first, method]
    summary = summarise(sources.results, settings, sources.gains)
    kernels = sources.kernels[first]
    train = kernels.get("n")
    head = headline(summary, len(chosen.first_draw), train, settings)
    return {
        "format": 1,
        "dataset": dataset_title(str(sources.results[0]["dataset"]), settings.dataset),
        "class_names": list(chosen.class_names),
        "images_per_class": settings.distill.most_per_class,
        "uneven": not isinstance(settings.distill.images_per_class, int),
        "train_images": train,
        "encoders": [_encoder(sources, name) for name in settings.encoders],
        "headline": head,
        "summary": summary,
        "curves": curves(sources.sets),
        "classes": per_class(sources.details),
        "confusion": confusion(sources.details, head, chosen.class_names, settings.report.max_classes),
        "cross": cross(summary, settings, {name: sources.sets[first, name].method for name in settings.methods}),
        "settings": settings.model_dump(mode="json", exclude={"runtime"}),
        "digests": dict(sorted(sources.digests.items())),
    }


def _encoder(sources: Sources, name: str) -> dict[str, Any]:
    given = sources.kernels[name].get("encoder") or next(
        (s.info.get("encoder") for (encoder, _), s in sources.sets.items() if encoder == name), None
    )
    described = given if isinstance(given, dict) else {}
    members = [member["name"] for member in described.get("members", [])]
    return {"name": name, "members": members} | {key: described.get(key) for key in ("dim", "size", "digest")}
