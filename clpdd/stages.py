"""The stages as functions of a project: settings and a data folder in, artifacts out. Callable without DVC."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .config import Settings, load_settings
from .encoders import Encoder, architecture_of, load_encoder, resolve_device
from .errors import SettingsError
from .files import read_json, sha256_file, write_json
from .layout import SPLITS, Layout
from .methods import OnProgress
from .ownership import take
from .ranks import ALONE, Ranks
from .work import exclusive, peak_memory_mb

if TYPE_CHECKING:
    from .comparison import Job

__all__ = [
    "Project",
    "ablate",
    "benchmark",
    "cache",
    "distill",
    "evaluate",
    "index",
    "kernels",
    "open_project",
    "page_is_current",
    "report",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Project:
    """Settings, the folder their artifacts lie in, and this process among those that run the stage together.

    ``params`` is the file that the settings come from, ``None`` of those made in Python.
    """

    settings: Settings
    layout: Layout
    ranks: Ranks = ALONE
    params: Path | None = None

    def encoder(self, name: str) -> Encoder:
        """One of the configured encoders, on the configured device."""
        if name not in self.settings.encoders:
            raise SettingsError(f"encoder {name!r} is not listed in encoders: {', '.join(self.settings.encoders)}")
        return load_encoder(**self.encoder_arguments(name))

    def encoder_arguments(self, name: str) -> dict[str, Any]:
        """Arguments of ``load_encoder``, as JSON values that another process can be handed."""
        device = self.ranks.device(resolve_device(self.settings.runtime.device))
        return self.settings.encoder_arguments(name) | {"device": str(device)}


def open_project(params: Path | str = "params.yaml", data: Path | str = "data", ranks: Ranks = ALONE) -> Project:
    """Read the settings and set the number of CPU threads. Raises ``SettingsError``."""
    settings = load_settings(params)
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    return Project(settings, Layout(Path(data)), ranks, Path(params))


def _take(project: Project, stage: str, item: str, target: Path, *keys: str, **values: Any) -> None:
    """Note which settings an artifact is made with; refused where another file's would be replaced (``ownership``).

    Args:
        keys: sections and settings at the top of the file that decide it.
        values: further ones.
    """
    if project.params is None:
        return
    written = load_settings(project.params, place=False).model_dump(mode="json")  # the same wherever the command runs
    decides = {key: written[key] for key in keys} | values
    take(project.layout.root, project.params, stage, item, target, decides, project.ranks.first)


def index(project: Project) -> None:
    """Labelled images to a Parquet index of each split."""
    from .datasets import build_index

    layout, settings = project.layout, project.settings
    _encoders_exist(settings)
    with exclusive(layout.work, "index", settings.runtime.wait_seconds):
        _take(project, "index", "", layout.index("train"), "seed", "dataset")
        begun = time.monotonic()
        partial = layout.work / "index" / "partial"
        build_index(
            settings.dataset,
            settings.seed,
            layout.index("train").parent,
            partial=partial,
            enough=settings.refuse_small_classes,
        )
        reading = {"stage": "index", "item": "", "device": "cpu", "seconds": time.monotonic() - begun}
        write_json(layout.clocks / "index.json", reading | {"peak_memory_mb": peak_memory_mb()})


def _encoders_exist(settings: Settings) -> None:
    """A misspelt encoder is refused before any image is read."""
    for name in settings.encoders:
        for member, options in settings.members(name).items():
            where = "encoders" if member == name else f"encoder_options.{name}.members"
            others = [] if member == name else [*settings.encoder_options, *settings.encoders]
            architecture_of(options.model or member, options.image_size, where, others)


def cache(project: Project, encoder: str) -> None:
    """Features of every split."""
    from .features import cache_features

    _take(
        project, "cache", encoder, project.layout.features(encoder, "train"), "cache", **_encoder_of(project, encoder)
    )
    _classes_large_enough(project)
    model = project.encoder(encoder)
    rates: list[float] = []
    for split in SPLITS:
        cache_features(
            project.layout.index(split),
            model,
            project.settings.cache,
            project.layout.features(encoder, split),
            project.layout.work,
            wait=project.settings.runtime.wait_seconds,
            measured=lambda images, seconds: rates.append(images / seconds),
            ranks=project.ranks,
        )
        clock = project.layout.clocks / f"cache-{encoder}-{split}.json"
        if rates and clock.exists():
            write_json(clock, read_json(clock) | {"images_per_second": rates.pop()})


def _encoder_of(project: Project, encoder: str) -> dict[str, Any]:
    """The options of one encoder as they are written, and of those it joins."""
    if project.params is None:
        return {}
    members = load_settings(project.params, place=False).members(encoder)
    return {"encoder": {name: options.model_dump(mode="json") for name, options in members.items()}}


def _classes_large_enough(project: Project) -> None:
    """Settings of ``distill`` may have changed since the index was made: refused before hours of encoding."""
    from .datasets import Index

    index = Index.open(project.layout.index("train"))
    counts = np.bincount(index.labels, minlength=len(index.class_names)).tolist()
    project.settings.refuse_small_classes(index.class_names, counts)


def kernels(project: Project, encoder: str) -> None:
    """Moments, spectrum, full-data probe and central images of one encoder's features."""
    from .kernels import compute_kernels

    layout = project.layout
    _take(project, "kernels", encoder, layout.kernels(encoder), "kernels")
    found = compute_kernels(
        layout.features(encoder, "train"),
        layout.features(encoder, "validation"),
        project.settings.kernels,
        layout.kernels(encoder),
        layout.work,
        wait=project.settings.runtime.wait_seconds,
    )
    score = next(entry["validation_top1"] for entry in found.ridge_scores if entry["ridge"] == found.ridge)
    log.info("full-data probe: validation top-1 %.2f %% at ridge %g", score, found.ridge)


def distill(project: Project, encoder: str, method: str, on_progress: OnProgress | None = None) -> None:
    """One distilled dataset."""
    from .distill import distill as run

    layout, settings = project.layout, project.settings
    kind, chosen = settings.variant(method)
    made = {"kind": kind, "distill": chosen.model_dump(mode="json"), **_encoder_of(project, encoder)}
    if kind == "random":
        made["random_draws"] = settings.evaluate.random_draws
    _take(project, "distill", f"{encoder}/{method}", layout.distilled(encoder, method), "seed", **made)
    run(
        kind,
        name=method,
        index=layout.index("train"),
        train=layout.features(encoder, "train"),
        validation=layout.features(encoder, "validation"),
        kernels=layout.kernels(encoder),
        encoder=project.encoder(encoder),
        target=layout.distilled(encoder, method),
        work_root=layout.work,
        settings=chosen,
        seed=settings.seed,
        random_draws=settings.evaluate.random_draws,
        wait=settings.runtime.wait_seconds,
        on_progress=on_progress,
        runtime=settings.runtime,
        ranks=project.ranks,
    )


def evaluate(project: Project) -> None:
    """Every distilled dataset, judged with every encoder on the test split."""
    from .evaluation import evaluate as run

    layout, settings = project.layout, project.settings
    wait = settings.runtime.wait_seconds
    with exclusive(layout.work, "evaluate", wait):
        keys = ("seed", "encoders", "methods", "evaluate")
        _take(project, "evaluate", "", layout.results / "results.parquet", *keys)
        run(
            {(e, m): layout.distilled(e, m) for e in settings.encoders for m in settings.methods},
            {name: project.encoder(name) for name in settings.encoders},
            {name: {split: layout.features(name, split) for split in SPLITS} for name in settings.encoders},
            {name: layout.kernels(name) for name in settings.encoders},
            settings.evaluate,
            settings.seed,
            layout.results,
            layout.work,
            layout.clocks,
            wait=wait,
        )


def benchmark(project: Project, encoder: str, command: str = "") -> Path:
    """Methods against each other by the clock, on the test split. Returns the page; the table lies beside it."""
    from .comparison import plan

    return _compare(project, encoder, plan(project.settings), "benchmark", "test", command)


def ablate(project: Project, encoder: str, command: str = "") -> Path:
    """The paper's ablations, on validation features. Returns the page; the table lies beside it."""
    from .comparison import plan_ablations

    return _compare(project, encoder, plan_ablations(project.settings), "ablations", "validation", command)


def _compare(project: Project, encoder: str, jobs: list[Job], name: str, judge: str, command: str) -> Path:
    from .comparison import compare
    from .report.comparison import write_comparison

    layout, settings = project.layout, project.settings
    folder = layout.comparison(encoder)
    probes = {"seeds": settings.benchmark.probe_seeds, "views": settings.benchmark.views}
    with exclusive(layout.work, "benchmark", settings.runtime.wait_seconds):
        keys = ("seed", "variants", "distill", "evaluate", "benchmark")
        _take(project, name, encoder, folder / f"{name}.parquet", *keys)
        compare(
            jobs,
            layout,
            project.encoder(encoder),
            project.encoder_arguments(encoder),
            settings.evaluate.model_copy(update=probes),
            settings.distill,
            settings.seed,
            folder / f"{name}.parquet",
            judge=judge,
            command=command,
            wait=settings.runtime.wait_seconds,
        )
    tables = [folder / f"{name}.parquet" for name in ("benchmark", "ablations")]
    return write_comparison([table for table in tables if table.exists()], folder / "comparison.html")


def report(project: Project) -> dict[str, Path]:
    """The result page."""
    from .report import write_report

    with exclusive(project.layout.work, "report", project.settings.runtime.wait_seconds):
        paths = write_report(project.layout, project.settings)
        write_json(_drawn(project), {"report.json": sha256_file(paths["report.json"])})
        return paths


def page_is_current(project: Project) -> bool:
    """Whether ``report.html``, which DVC does not keep, shows the numbers of the present ``report.json``."""
    results, note = project.layout.results, _drawn(project)
    if not (results / "report.json").exists():
        return True
    if not ((results / "report.html").exists() and note.exists()):
        return False
    return bool(read_json(note) == {"report.json": sha256_file(results / "report.json")})


def _drawn(project: Project) -> Path:
    return project.layout.work / "report" / "drawn.json"
