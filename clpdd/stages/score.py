"""Any set of images, judged as the stage evaluate judges distilled ones: the same probes on the same test split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..distilled.foreign import read_set
from ..encoders.deterministic import deterministic
from ..errors import SettingsError
from ..evaluation.inputs import open_bench
from ..evaluation.running import run_protocol, viewed_protocols
from ..evaluation.subject import Subject
from ..evaluation.worth import Worth, worth_of
from ..features.versions import confirm
from ..runtime.machine import explain_memory_errors
from ..runtime.tables import aligned, with_spread
from .evaluate import evaluation_data
from .project import Project

__all__ = ["run_score", "score_table"]


def run_score(project: Project, images: Path, encoders: Sequence[str], *, worth: bool = False) -> list[dict[str, Any]]:
    """Judge images with encoders whose features and kernels are there.

    Protocols, seeds and views are those of the section ``evaluate``, all but what asks for a distilling encoder.

    Args:
        images: see ``clpdd.distilled.foreign.read_set``.
        encoders: names in ``encoders``.
        worth: whether to measure what the set carries, too.

    Returns:
        A mapping for each encoder and protocol with ``encoder``, ``protocol``, ``views``, ``rows`` (as in
        ``results.parquet``) and ``notes``; with ``worth`` one more for each encoder, of ``encoder`` and ``worth``.

    Raises:
        DataError: images that cannot be judged as they are; see ``read_set``.
        ArtifactError: features or kernels are missing, or other versions of the libraries made other features.
        SettingsError: no encoder, or one whose input is not square.
    """
    settings, found = project.settings, list[dict[str, Any]]()
    if not encoders:
        raise SettingsError("score needs at least one encoder: give --encoder")
    for name in encoders:
        encoder = project.encoder(name)
        encoder.require_square("judging images")
        given = evaluation_data(project.layout, name, encoder)
        bench = open_bench(name, given)
        if given.test_index is not None:
            confirm(bench.judge, encoder, given.test_index)
        known = bench.judge.class_names
        data = read_set(images, known, bench.encoder.transform, settings.dataset.max_pixels)
        subject = Subject(data, bench, settings.evaluate, settings.seed, lambda: None)
        lower = f"lower evaluate.encoder_batch (now {settings.evaluate.encoder_batch}) or evaluate.views"
        with deterministic(bench.encoder.device), explain_memory_errors(lower):
            for viewed in viewed_protocols(settings.evaluate, full=False):
                piece = run_protocol(subject, viewed)
                facts = {"encoder": name, "protocol": viewed.name, "views": viewed.views}
                found.append(facts | {"rows": piece["rows"], "notes": piece["notes"]})
            if worth:
                found.append({"encoder": name, "worth": worth_of(subject, settings.evaluate.ridge)})
    return found


def score_table(found: Sequence[dict[str, Any]]) -> str:
    """What ``run_score`` found, as text."""
    grouped = any("worst_group" in row for one in found for row in one.get("rows", ()))
    names = ("top5", "mean_per_class", *(("worst_group",) if grouped else ()))
    more = ("top-5 %", "mean per class %", *(("worst group %",) if grouped else ()))
    lines = [("evaluated with", "protocol", "views", "top-1 %", *more, "probes")]
    said = []
    for one in found:
        if isinstance(one.get("worth"), Worth):
            said.append(f"\n{one['encoder']}:\n{one['worth'].described()}")
            continue
        top1 = [row["top1"] for row in one["rows"]]
        number = with_spread(fmean(top1), stdev(top1) if len(top1) > 1 else None)
        others = [f"{fmean(row[name] for row in one['rows']):.2f}" for name in names]
        lines.append((one["encoder"], one["protocol"], one["views"], number, *others, str(len(top1))))
    return "\n".join([aligned(lines, left=3), *said])
