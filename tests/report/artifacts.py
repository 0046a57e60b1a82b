"""Artifacts as the stages before the report write them, with plausible numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from clpdd.config.settings import Settings
from clpdd.distilled.dataset import DistilledSet, grid
from clpdd.storage.files import write_json
from clpdd.storage.layout import Layout

MEANS = {"clp": 91.2, "random": 58.0, "centroid": 76.4, "full": 97.1}
ROWS: list[tuple[str, pa.DataType]] = [
    *((name, pa.string()) for name in ("dataset", "method", "distil_encoder", "eval_encoder", "protocol", "views")),
    *((name, pa.int64()) for name in ("ipc", "seed", "draw")),
    *((name, pa.float64()) for name in ("top1", "top5", "mean_per_class", "worst_group")),
    ("fingerprint", pa.string()),
]


def upscaled(images: np.ndarray, side: int) -> Tensor:
    """(n, 8, 8) in [0, 16] as (n, 3, side, side) uint8."""
    scaled = torch.from_numpy(images).float()[:, None] / 16
    grown = torch.nn.functional.interpolate(scaled, (side, side), mode="bicubic").clamp(0, 1)
    return (grown * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def sets(classes: int, ipc: int, side: int, names: list[str], encoder: str) -> dict[str, DistilledSet]:
    """Every method's set: digits, means of digits with a tint, and colour noise for the classes beyond ten."""
    digits = load_digits()
    rng = np.random.default_rng([classes, ipc, side])
    labels = torch.arange(classes).repeat_interleave(ipc)

    def real(number: int) -> Tensor:
        rows = [np.flatnonzero(digits.target == c % 10)[number + c // 10] for c in labels.tolist()]
        return upscaled(digits.images[rows], side)

    means = np.stack([digits.images[digits.target == c % 10].mean(0) for c in labels.tolist()])
    tint = torch.from_numpy(rng.normal(0, 38, (len(labels), 3, 16, 16))).float()
    tint = torch.nn.functional.interpolate(tint, (side, side), mode="bicubic")
    synthetic = (upscaled(means, side).float() + tint).clamp(0, 255).to(torch.uint8)
    start = real(3)
    blend = [(start.float() * (1 - a) + synthetic.float() * a).to(torch.uint8) for a in (0, 0.25, 0.5, 0.75, 1)]
    loss = [[i + 1, round(2.3 * 0.99**i + 0.4 + 0.1 * float(rng.normal()) ** 2, 6)] for i in range(400)]
    scores = [[step, round(91 - 40 * float(np.exp(-step / 90)), 4)] for step in range(0, 401, 50)]
    record = {
        "dataset": "digits",
        "images_per_class": ipc,
        "encoder": {"name": encoder, "dim": 768, "size": side, "digest": "ab" * 32},
        "fingerprint": "cd" * 32,
    }
    curves = {"loss": loss, "validation_top1": scores}
    none = torch.zeros(0, dtype=torch.int64)
    return {
        "clp": DistilledSet(
            synthetic,
            labels,
            names,
            record | {"method": "clp", "curves": curves, "kept_step": 350},
            start=start,
            frames=[grid(images) for images in blend],
        ),
        "random": DistilledSet(
            torch.cat([real(5), real(6)]),
            labels.repeat(2),
            names,
            record | {"method": "random"},
            draw=torch.arange(2).repeat_interleave(len(labels)),
        ),
        "centroid": DistilledSet(real(4), labels, names, record | {"method": "centroid"}),
        "full": DistilledSet(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), none, names, record | {"method": "full"}),
    }


def variants(method: str) -> list[tuple[str, str, float]]:
    """(protocol, views, points lost) as evaluation runs them."""
    if method == "full":
        return [("closed_form", "clean", 3.0), ("logistic", "clean", 0.0)]
    return [("sgd", "bank-100", 0.0), ("closed_form", "clean", 1.5), ("closed_form", "bank-100", 3.0)]


def evaluations(settings: Settings) -> list[dict[str, Any]]:
    """The columns that tell evaluations apart, for every method and pair of encoders."""
    return [
        {"method": method, "distil_encoder": a, "eval_encoder": b, "protocol": protocol, "views": views}
        for a in settings.encoders
        for method in settings.methods
        for b in settings.encoders
        for protocol, views, _ in variants(method)
    ]


def results(settings: Settings) -> list[dict[str, Any]]:
    """Plausible rows, a seed's each."""
    rng = np.random.default_rng(0)
    rows = []
    for names in evaluations(settings):
        method = names["method"]
        lost = {(p, v): points for p, v, points in variants(method)}[names["protocol"], names["views"]]
        lost += 12 * (names["distil_encoder"] != names["eval_encoder"] and method != "full")
        for seed in range(1 if method == "full" else 5):
            top1 = MEANS[method] - lost + (0.0 if method == "full" else float(rng.normal()))
            row: dict[str, Any] = dict.fromkeys(name for name, _ in ROWS)
            row |= names | {"dataset": "digits", "seed": seed, "draw": 0, "top1": top1, "top5": min(100.0, top1 + 7)}
            row |= {
                "fingerprint": "ef" * 32,
                "mean_per_class": top1,
                "ipc": None if method == "full" else settings.distill.images_per_class,
            }
            rows.append(row)
    return rows


def details(settings: Settings, names: list[str]) -> dict[str, Any]:
    """Confusion matrices that agree with ``MEANS``, 45 test images of every class."""
    rng, n = np.random.default_rng(1), len(names)
    rows = []
    for found in evaluations(settings):
        share = MEANS[found["method"]] / 100
        chances = np.full((n, n), (1 - share) / (n - 1))
        np.fill_diagonal(chances, share)
        confusion = np.stack([rng.multinomial(45, row) for row in chances])
        per_class = (100 * np.diag(confusion) / 45).tolist()
        rows.append(found | {"probes": 1, "per_class": per_class, "confusion": confusion.tolist(), "notes": {}})
    return {"format": 1, "class_names": names, "test_images": [45] * n, "rows": rows}


def write_artifacts(root: Path, settings: Settings, names: list[str], side: int = 64, clocks: bool = True) -> Layout:
    """A data folder as the stages leave it."""
    layout, ipc, classes = Layout(root), settings.distill.most_per_class, len(names)
    for encoder in settings.encoders:
        made = sets(classes, ipc, side, names, encoder)
        for method in settings.methods:
            made[method].save(layout.distilled(encoder, method))
        write_json(layout.kernels(encoder) / "kernels.json", {"n": 1257, "encoder": made["clp"].info["encoder"]})
    table = pa.Table.from_pylist(results(settings), schema=pa.schema(ROWS))
    layout.results.mkdir(parents=True)
    pq.write_table(table, layout.results / "results.parquet")
    write_json(layout.results / "details.json", details(settings, names))
    if clocks:
        write_clocks(layout, settings)
    return layout


def write_clocks(layout: Layout, settings: Settings) -> None:
    """Sidecars of every stage but ``index``, as if that one had come out of a cache."""
    reading = {"peak_memory_mb": 812.5, "device": "cpu"}
    for encoder in settings.encoders:
        write_json(
            layout.clocks / f"cache-{encoder}.json",
            reading | {"stage": "cache", "item": encoder, "seconds": 42.3, "images_per_second": 411.0},
        )
        write_json(
            layout.clocks / f"kernels-{encoder}.json", reading | {"stage": "kernels", "item": encoder, "seconds": 0.61}
        )
        for method in settings.methods:
            seconds = 134.2 if method == "clp" else 0.4
            write_json(
                layout.clocks / f"distill-{encoder}-{method}.json",
                reading | {"stage": "distill", "item": f"{encoder}-{method}", "seconds": seconds},
            )
    rows = [found | {"seconds": 12.0, "peak_memory_mb": 900.0} for found in evaluations(settings)]
    write_json(
        layout.clocks / "evaluate.json", reading | {"stage": "evaluate", "item": "", "seconds": 96.0, "rows": rows}
    )


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HOSTILE = [
    "<script>alert(1)</script>",
    "a" * 80,
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "Nördliche Fichtenholzschindeldachdeckerei",
    "http://example.org/'&amp;",
]
