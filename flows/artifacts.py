"""What a run shows in the Prefect UI: progress of each stage, results, images, report and revision."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.runtime import flow_run

from clpdd.storage.files import sha256_file
from clpdd.storage.layout import Layout

__all__ = ["REPORT_URL", "StageProgress", "key", "publish_artifacts", "read_progress", "result_rows"]

REPORT_URL = "CLPDD_REPORT_URL"
"""Environment variable: where the results folder is served, if it is (``make serve`` does)."""

_COUNT = re.compile(r"(?<![\w.])(\d+)\s?(?:/|of)\s?(\d+)(?![\w.])")
_GROUP = ("distil_encoder", "method", "eval_encoder", "protocol", "views")
_WIDTH, _PREVIEWS = 640, 24


def key(*parts: str) -> str:
    """An artifact key: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def read_progress(line: str) -> float | None:
    """Percent done as told by a line of output, ``step 3 of 4`` or ``3/4``; ``None`` when it tells none."""
    counts = [(int(done), int(total)) for done, total in _COUNT.findall(line)]
    for done, total in counts:
        if 0 <= done <= total and total > 0:
            return 100 * done / total
    return None


class StageProgress:
    """A stage's progress artifact, fed with its output; written at most every ``every`` seconds."""

    def __init__(self, stage: str, every: float = 2.0) -> None:
        self.stage, self.every = stage, every
        self.artifact: UUID | None = None
        self.written = -1.0
        self.at = 0.0

    def line(self, text: str) -> None:
        """Look for progress in a line of output."""
        percent = read_progress(text)
        if percent is not None and percent != self.written and time.monotonic() - self.at >= self.every:
            self._write(percent)

    def done(self) -> None:
        """The stage has succeeded."""
        self._write(100.0)

    def _write(self, percent: float) -> None:
        try:
            if self.artifact is None:
                made = create_progress_artifact(percent, key=key("progress", self.stage), description=self.stage)
                self.artifact = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self.artifact, percent)
        except Exception as error:  # the display must not cost the work
            get_run_logger().warning("progress of %s could not be shown: %s", self.stage, error)
        self.written, self.at = percent, time.monotonic()


def result_rows(path: Path) -> list[dict[str, Any]]:
    """Mean and sample standard deviation of the result table over seeds and draws, one row per thing compared.

    The spread of a single probe is ``None``, as in the report.
    """
    table = pq.read_table(path)
    by = [name for name in _GROUP if name in table.column_names]
    sample = pc.VarianceOptions(ddof=1, min_count=2)
    wanted = [("top1", "mean"), ("top1", "stddev", sample), ("top5", "mean"), ("top1", "count")]
    grouped = table.group_by(by).aggregate(wanted)
    grouped = grouped.take(pc.sort_indices(grouped, sort_keys=[(name, "ascending") for name in by]))

    def number(value: float | None) -> float | None:
        return None if value is None else round(value, 2)

    return [
        {name: row[name] for name in by}
        | {
            "top1": number(row["top1_mean"]),
            "spread": number(row["top1_stddev"]),
            "top5": number(row["top5_mean"]),
            "probes": row["top1_count"],
        }
        for row in grouped.to_pylist()
    ]


def beside_last(rows: Iterable[dict[str, Any]], last: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The accuracies of this run beside those of the last one, and their differences."""

    def name(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(part) for part in _GROUP)

    before = {name(row): row.get("top1") for row in last}
    compared = []
    for row in rows:
        old = before.get(name(row))
        change = None if old is None or row["top1"] is None else round(row["top1"] - old, 2)
        compared.append(
            {part: row[part] for part in _GROUP if part in row}
            | {"top1": row["top1"], "last run": old, "change": change}
        )
    return compared


def _last_table(artifact_key: str) -> list[dict[str, Any]]:
    """The newest table under a key that another flow run left."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key])),
            sort=ArtifactSort.CREATED_DESC,
            limit=20,
        )
    for artifact in found:
        if str(artifact.flow_run_id) != str(flow_run.get_id()):
            rows = json.loads(artifact.data) if isinstance(artifact.data, str) else artifact.data
            return rows if isinstance(rows, list) else []
    return []


def _data_uri(path: Path) -> str:
    with Image.open(path) as image:
        shown = image.convert("RGB")
        if shown.width > _WIDTH:
            shown = shown.resize((_WIDTH, max(1, round(shown.height * _WIDTH / shown.width))))
        stream = io.BytesIO()
        shown.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _revision(root: Path) -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    digest = sha256_file(root / "dvc.lock")
    commit = git("rev-parse", "HEAD") or "none"
    state = "changed since" if git("status", "--porcelain", "--", "dvc.lock") else "as committed"
    return f"| | |\n|---|---|\n| dvc.lock | `{digest}` |\n| commit | `{commit}` |\n| dvc.lock is | {state} |\n"


def publish_artifacts(root: Path) -> None:
    """Show what there is of: result table, accuracy beside the last run, synthetic images, report, revision."""
    layout = Layout(root / "data")
    results = layout.results / "results.parquet"
    if results.is_file():
        rows = result_rows(results)
        last = _last_table("results")
        create_table_artifact(rows, key="results", description="Accuracy in percent, mean and spread over probes")
        create_table_artifact(
            beside_last(rows, last), key="accuracy-beside-last-run", description="Top-1 in percent: this run, the last"
        )
    previews = sorted((layout.root / "distilled").glob("*/*/preview.png"))
    if previews:
        shown = previews[:_PREVIEWS]
        parts = [f"### {path.parent.parent.name}, {path.parent.name}\n\n![]({_data_uri(path)})" for path in shown]
        if len(previews) > len(shown):
            parts.append(f"and {len(previews) - len(shown)} more: see the report")
        create_markdown_artifact("\n\n".join(parts), key="synthetic-images", description="Distilled images")
    report = layout.results / "report.html"
    if report.is_file():
        base = os.environ.get(REPORT_URL)
        link = f"{base.rstrip('/')}/{quote(report.name)}" if base else report.resolve().as_uri()
        create_link_artifact(link, link_text="Result page", key="report", description=str(report.resolve()))
    if (root / "dvc.lock").is_file():
        create_markdown_artifact(_revision(root), key="dvc-lock", description="Revision of dvc.lock")
