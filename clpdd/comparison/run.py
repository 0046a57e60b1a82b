"""The runner: every job distilled once, every point of it judged once, whatever kills come between."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import DistillSettings, EvaluateSettings
from ..datasets import Index
from ..distilled import DistilledSet
from ..encoders import Encoder
from ..errors import Preempted
from ..evaluation.inputs import open_bench
from ..evaluation.pieces import read_piece, write_piece
from ..evaluation.protocols import Bench, Subject, run, variants
from ..files import explain_memory_errors, read_json, sha256_bytes, sha256_tree, write_bytes, write_json
from ..layout import Layout
from ..methods import Snapshot
from ..preemption import StopRequest
from ..provenance import code_digest
from ..work import WorkFolder, fingerprint, versions
from .child import Order, run_apart
from .machine import describe_machine
from .plan import Job, marks_by_clock, marks_by_steps
from .table import table_bytes
from .track import read_track

__all__ = ["compare"]

log = logging.getLogger(__name__)


def compare(
    jobs: Sequence[Job],
    layout: Layout,
    encoder: Encoder,
    options: dict[str, Any],
    settings: EvaluateSettings,
    base: DistillSettings,
    seed: int,
    table: Path,
    *,
    judge: str = "test",
    command: str = "",
    wait: float = 0.0,
) -> list[dict[str, Any]]:
    """Distil and judge every job; write the table.

    A killed run is continued by calling again with the same arguments: finished distillations and judgements are
    kept, a distillation on its way goes on from its checkpoint with its clock.

    Args:
        jobs: each after its reference.
        layout: where index, features and kernels of ``encoder`` lie, and the work folder.
        options: arguments of ``load_encoder`` that give ``encoder`` in another process.
        settings: of the probes.
        base: ``distill`` of the settings, from which the rows tell the differences.
        seed: of the probes.
        table: Parquet file to write (``clpdd.comparison.table.SCHEMA``).
        judge: ``test``, or ``validation`` where something is to be chosen: then the test split is not opened.
        command: what the rows say they were made by.

    Returns:
        The rows of the table.

    Raises:
        Preempted: asked to stop; everything but the piece at hand is kept.
        ArtifactError, DataError, NumericalError, ResourceError, BusyError: see ``clpdd.errors``.
    """
    stores = {split: layout.features(encoder.name, split) for split in ("train", "validation", judge)}
    bench = open_bench(encoder.name, encoder, stores, layout.kernels(encoder.name), judge)
    runner = _Runner(layout, bench, options, settings, base, seed, judge, command, wait)
    rows: list[dict[str, Any]] = []
    with StopRequest() as stop:

        def tick() -> None:
            if stop.name is not None:
                raise Preempted(f"stopped by {stop.name}: finished pieces are kept, start again to go on")

        for number, job in enumerate(jobs, 1):
            tick()
            log.info("%d of %d: %s", number, len(jobs), job.item)
            rows += runner.rows(job, tick)
    write_bytes(table, table_bytes(rows))
    return rows


@dataclass(frozen=True)
class _Point:
    """What there is to judge: a set, and the snapshot that it is, if its method has steps."""

    data: DistilledSet
    snapshot: Snapshot | None
    last: bool

    @property
    def name(self) -> str:
        return "set" if self.snapshot is None else f"{self.snapshot.step:09d}"


class _Runner:
    def __init__(
        self,
        layout: Layout,
        bench: Bench,
        options: dict[str, Any],
        settings: EvaluateSettings,
        base: DistillSettings,
        seed: int,
        judge: str,
        command: str,
        wait: float,
    ) -> None:
        self.layout, self.bench, self.options, self.settings = layout, bench, options, settings
        self.base, self.seed, self.judge, self.command, self.wait = base, seed, judge, command, wait
        encoder = bench.encoder
        self.machine = describe_machine(encoder.mean.device)
        self.index = Index.open(layout.index("train"))
        self.inputs = {
            "index": self.index.digest,
            "train": bench.train.digest,
            "validation": bench.validation.digest,
            "kernels": sha256_tree(layout.kernels(encoder.name)),
            "encoder": encoder.describe(),
        }

    # -- distillation --------------------------------------------------------------------------------------------------

    def room(self, job: Job) -> WorkFolder:
        """The work folder of a job; of a peer it hangs on the time that its reference took."""
        parts = fingerprint(
            method=job.method,
            name=job.name,
            settings=job.settings.model_dump(mode="json"),
            seed=job.seed,
            draws=job.draws if job.method == "random" else None,
            steps=self._steps(job),
            seconds=self._seconds(job),
            inputs=self.inputs,
            machine=self.machine,
            code=code_digest("clpdd.distill"),
        )
        return WorkFolder(self.layout.work, "benchmark", f"{self.bench.encoder.name}/{job.item}", parts, self.wait)

    def _steps(self, job: Job) -> list[int]:
        by_steps = job.optimises and job.reference is None
        return marks_by_steps(job.settings.steps, job.halvings) if by_steps else []

    def _seconds(self, job: Job) -> list[float]:
        if job.reference is None:
            return []
        taken = read_track(self.room(job.reference).out / "track")[-1].seconds
        return marks_by_clock(taken, job.time_factor, job.halvings or 0)

    def _distil(self, job: Job, work: WorkFolder, tick: Callable[[], object]) -> None:
        order = Order(
            encoder=self.options,
            data=str(self.layout.root),
            method=job.method,
            name=job.name,
            settings=job.settings.model_dump(mode="json"),
            seed=job.seed,
            draws=job.draws,
            work=str((self.room(job.source) if job.source is not None else work).path / "work"),
            out=str(work.out),
            steps=self._steps(job),
            seconds=self._seconds(job),
            threads=torch.get_num_threads(),
        )
        write_json(work.out / "reading.json", run_apart(order, tick))
        work.finish()

    # -- judgement -----------------------------------------------------------------------------------------------------

    def rows(self, job: Job, tick: Callable[[], object]) -> list[dict[str, Any]]:
        """Distil and judge what is not yet, and tell all of it."""
        with self.room(job) as work:
            if not work.finished:
                self._distil(job, work, tick)
            told = self._about(job, work) | read_json(work.out / "reading.json")
            pairs = [{"group": group, "choice": choice} for group, choice in job.choices] or [{}]
            rows = []
            for point in self._points(job, work):
                for row in self._judge(job, point, work, tick):
                    rows += [told | _clock(point) | row | pair for pair in pairs]
            return rows

    def _points(self, job: Job, work: WorkFolder) -> list[_Point]:
        if not job.optimises:
            return [_Point(DistilledSet.load(work.out / "set"), None, True)]
        track = read_track(work.out / "track")
        names, info = list(self.bench.judge.class_names), {"method": job.method, "name": job.name}
        labels = torch.arange(len(names)).repeat_interleave(torch.tensor(job.settings.per_class(names)))
        return [
            _Point(DistilledSet(p.images, labels, names, info, soft_labels=p.soft_labels), p, p is track[-1])
            for p in track
        ]

    def _judge(self, job: Job, point: _Point, work: WorkFolder, tick: Callable[[], object]) -> list[dict[str, Any]]:
        settings, rows = self.settings, []
        subject: Subject | None = None
        folder = work.path / "judged" / self._judgement_digest()
        for variant in variants(settings, not len(point.data)):
            tick()
            file = folder / f"{point.name}-{variant}.json"
            piece = read_piece(file)
            if piece is None:
                subject = subject or Subject(point.data, self.bench, settings, self.seed, tick)
                with explain_memory_errors(f"lower evaluate.encoder_batch (now {settings.encoder_batch})"):
                    found = run(subject, variant)
                piece = {"rows": found["rows"]}
                write_piece(file, piece)
            for row in piece["rows"]:
                scores = {"draw": row["draw"], "probe_seed": row["seed"], "top1": row["top1"], "top5": row["top5"]}
                rows.append({"protocol": variant.protocol, "views": variant.views} | scores)
        return rows

    def _judgement_digest(self) -> str:
        parts = {
            "settings": self.settings.model_dump(mode="json", exclude={"protocols", "random_draws"}),
            "seed": self.seed,
            "judge": self.bench.judge.digest,
            "code": code_digest("clpdd.evaluation"),
        }
        return sha256_bytes(json.dumps(parts, sort_keys=True).encode())[:16]

    def _about(self, job: Job, work: WorkFolder) -> dict[str, Any]:
        return {
            "dataset": self.index.dataset,
            "encoder": self.bench.encoder.name,
            "name": job.name,
            "method": job.method,
            "reference": job.reference.name if job.reference is not None else None,
            "ipc": None if job.method == "full" else job.settings.images_per_class,
            "seed": job.seed,
            "judge": self.judge,
            "changed": json.dumps(_changes(job.settings, self.base), sort_keys=True),
            "machine": self.machine,
            "versions": json.dumps(versions(), sort_keys=True),
            "command": self.command,
            "fingerprint": work.digest,
        }


def _clock(point: _Point) -> dict[str, Any]:
    names = ("step", "seconds", "forward", "backward")
    return {name: getattr(point.snapshot, name, None) for name in names} | {"last": point.last}


def _changes(settings: DistillSettings, base: DistillSettings) -> dict[str, Any]:
    one, other = settings.model_dump(mode="json"), base.model_dump(mode="json")
    return {key: one[key] for key in one if one[key] != other[key]}
