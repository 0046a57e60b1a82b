"""The report: one page that opens anywhere, and the numbers on it.

``write_report`` reads distilled datasets, results and clock readings and writes three files. ``report.json`` holds
what is deterministic; ``report.html`` also shows clock readings where there are any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.settings import Settings
from ..errors import ClpddError
from ..report.clocks import read_clocks, timed_results
from ..report.data import MOST_ENCODED, gather, read_sources
from ..report.page import render
from ..storage.files import canonical_json, read_json, sha256_file, write_bytes, write_json
from ..storage.layout import SPLITS, Layout
from ..storage.work import exclusive

if TYPE_CHECKING:
    from ..encoders.encoder import Encoder
    from ..report.insight import Insight
    from .project import Project

__all__ = ["page_is_current", "run_report", "update_report", "write_report"]

log = logging.getLogger(__name__)


def write_report(
    layout: Layout, settings: Settings, out: Path | None = None, encoder: Callable[[], Encoder] | None = None
) -> dict[str, Path]:
    """Write the report of a finished pipeline.

    Args:
        layout: where the artifacts lie; nothing but ``out`` is written.
        settings: the settings they were made with.
        out: folder of the files; ``None`` takes ``layout.results``.
        encoder: gives the first encoder of the settings, for what needs one: the picture of feature space and the
            mistakes of the probe that is handed over. They are left out, with a word, where it cannot be had, where
            features are missing, and without this argument.

    Returns:
        Paths by file name: ``report.json`` (the same bytes for the same artifacts), ``report.html`` (one self-contained
        page below 6 MB) and ``results-timed.parquet`` (the results joined with seconds and peak memory, null where they
        were not measured).

    Raises:
        ArtifactError: an artifact is missing or damaged; the message names it and the stage that makes it.
    """
    out = layout.results if out is None else Path(out)
    sources, clocks = read_sources(layout, settings), read_clocks(layout)
    facts = gather(sources, settings)
    insight = None if encoder is None else _insight(layout, settings, facts, encoder)
    contents = {
        "report.json": canonical_json(facts).encode(),
        "report.html": render(facts, sources.sets, clocks, layout, settings, insight).encode(),
        "results-timed.parquet": timed_results(layout.results / "results.parquet", clocks),
    }
    for name, data in contents.items():
        write_bytes(out / name, data)
    return {name: out / name for name in contents}


def _insight(
    layout: Layout, settings: Settings, facts: dict[str, Any], encoder: Callable[[], Encoder]
) -> Insight | None:
    name, method, images = settings.encoders[0], facts["headline"]["method"], facts["headline"]["images"]
    if not images:
        return None
    if images > MOST_ENCODED:
        log.info("the report has no picture of feature space: %s has more than %d images", method, MOST_ENCODED)
        return None
    if not all(layout.features(name, split).exists() for split in SPLITS):
        log.warning("the report has no picture of feature space and no mistakes: there are no features of %s", name)
        return None
    from ..distilled.dataset import DistilledSet  # here: a report without features starts without torch
    from ..report.insight import look_closer  # likewise

    try:
        wanted = [own for own in settings.methods if own in (method, "centroid")]
        sets = {own: DistilledSet.load(layout.distilled(name, own)) for own in wanted}
        return look_closer(layout, encoder(), method, sets, settings.evaluate, settings.seed)
    except ClpddError as error:
        log.warning("the report has no picture of feature space and no mistakes: %s", error)
        return None


def _encoder(settings: Settings) -> Encoder:
    """The first encoder of the settings."""
    from ..encoders.loading import load_encoder, resolve_device  # here: a report without features starts without torch

    device = str(resolve_device(settings.runtime.device))
    return load_encoder(**settings.encoder_arguments(settings.encoders[0]), device=device)


def update_report(layout: Layout, settings: Settings) -> dict[str, Path]:
    """``write_report`` into the project's own folder, while nobody else does, noting which numbers the page shows."""
    with exclusive(layout.work, "report", settings.runtime.wait_seconds):
        paths = write_report(layout, settings, encoder=lambda: _encoder(settings))
        write_json(_drawn(layout), {"report.json": sha256_file(paths["report.json"])})
        return paths


def run_report(project: Project) -> dict[str, Path]:
    """The result page."""
    return update_report(project.layout, project.settings)


def page_is_current(layout: Layout) -> bool:
    """Whether ``report.html``, which DVC does not keep, shows the numbers of the present ``report.json``."""
    results, note = layout.results, _drawn(layout)
    if not (results / "report.json").exists():
        return True
    if not ((results / "report.html").exists() and note.exists()):
        return False
    return bool(read_json(note) == {"report.json": sha256_file(results / "report.json")})


def _drawn(layout: Layout) -> Path:
    return layout.work / "report" / "drawn.json"
