"""The runner: every job distilled once, every point of it judged once, whatever kills come between."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.distill import DistillSettings
from ..datasets.index import Index
from ..distilled.dataset import DistilledSet
from ..errors import Preempted
from ..methods.loading import modules_of
from ..optimise.context import Snapshot
from ..runtime.machine import describe_machine
from ..runtime.preemption import StopRequest
from ..runtime.progress import Progress
from ..stages.project import Project
from ..storage.files import read_json, sha256_tree, write_bytes, write_json
from ..storage.provenance import code_digest
from ..storage.work import WorkFolder, fingerprint, versions
from .child import Order, run_apart
from .due import preparation
from .judging import Judging
from .plan import Job, marks_by_clock, marks_by_steps
from .table import table_bytes
from .track import read_track

__all__ = ["compare"]

log = logging.getLogger(__name__)


def compare(
    project: Project,
    encoder: str,
    jobs: Sequence[Job],
    table: Path,
    *,
    judge: str = "test",
    command: str = "",
) -> list[dict[str, Any]]:
    """Distil and judge every job; write the table.

    A killed run is continued by calling again with the same arguments: finished distillations and judgements are
    kept, a distillation on its way goes on from its checkpoint with its clock.

    Args:
        project: its artifacts up to the kernels of ``encoder``, and its settings of probes, ``evaluate`` with the
            numbers of probes and views that ``benchmark`` says.
        jobs: each after its reference.
        table: Parquet file to write (``clpdd.benchmark.table.SCHEMA``).
        judge: ``test``, or ``validation`` where something is to be chosen: then the test split is not opened.
        command: what the rows say they were made by.

    Returns:
        The rows of the table.

    Raises:
        Preempted: asked to stop; everything but the piece at hand is kept.
        ArtifactError, DataError, NumericalError, ResourceError, BusyError: see ``clpdd.errors``.
    """
    runner = _Runner(project, encoder, judge, command)
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
    def __init__(self, project: Project, encoder: str, judge: str, command: str) -> None:
        self.project, self.judge, self.command = project, judge, command
        others = project.settings.benchmark.transfer_to if judge == "test" else []
        self.judging = Judging(project, encoder, judge, others)
        self.bench = self.judging.bench
        self.encoder, self.data = encoder, project.training(encoder)
        self.options = project.encoder_arguments(encoder)
        self.machine = describe_machine(self.bench.encoder.device)
        self.index = Index.open(self.data.index)
        self.inputs = {
            "index": self.index.digest,
            "train": self.bench.train.digest,
            "validation": self.bench.validation.digest,
            "kernels": sha256_tree(self.data.kernels),
            "encoder": self.bench.encoder.describe(),
        }
        self.few_shot = self.judging.few_shot() if judge == "test" else None

    # -- distillation --------------------------------------------------------------------------------------------------

    def folder(self, job: Job) -> WorkFolder:
        """The work folder of a job; of a peer it hangs on the time that its reference took."""
        record = fingerprint(
            method=job.method,
            name=job.name,
            settings=job.settings.model_dump(mode="json"),
            seed=job.seed,
            steps=self._steps(job),
            seconds=self._seconds(job),
            inputs=self.inputs,
            machine=self.machine,
            code=code_digest("clpdd.stages.distill", *modules_of(job.method, job.settings), *self.bench.encoder.code),
        )
        return self.project.run.folder("benchmark", f"{self.bench.encoder.name}/{job.item}", record)

    def _steps(self, job: Job) -> list[int]:
        by_steps = job.optimises and job.reference is None
        return marks_by_steps(job.settings.steps, job.halvings) if by_steps else []

    def _seconds(self, job: Job) -> list[float]:
        if job.reference is None:
            return []
        taken = read_track(self.folder(job.reference).out / "track")[-1].seconds
        return marks_by_clock(taken, job.time_factor, job.halvings or 0)

    def _distil(self, job: Job, work: WorkFolder, tick: Callable[[], object]) -> None:
        order = Order(
            encoder=self.options,
            data={name: str(path) for name, path in vars(self.data).items()},
            method=job.method,
            name=job.name,
            settings=job.settings.model_dump(mode="json"),
            runtime=self.project.settings.runtime.model_dump(mode="json"),
            seed=job.seed,
            work=str((self.folder(job.source) if job.source is not None else work).path / "work"),
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
        with self.folder(job) as work:
            if not work.finished:
                self._distil(job, work, tick)
            told = self._about(job, work) | read_json(work.out / "reading.json")
            pairs = [{"group": group, "choice": choice} for group, choice in job.choices] or [{}]
            rows = []
            points = self._points(job, work)
            with Progress(len(points), f"judge {job.name}", "point", even=False) as bar:

                def beat() -> None:
                    tick()
                    bar.beat()

                for point in points:
                    for row in self.judging.rows(point.data, point.name, work.path / "judged", point.last, beat):
                        rows += [told | _clock(point) | row | pair for pair in pairs]
                    bar.update()
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
            "changed": json.dumps(_changes(job.settings, self.project.settings.distill), sort_keys=True),
            "machine": self.machine,
            "versions": json.dumps(versions(), sort_keys=True),
            "command": self.command,
            "fingerprint": work.digest,
            **preparation(self.project.layout.clocks, self.encoder, job.method, job.settings),
            "skipped": json.dumps(self.judging.skipped),
            "few_shot": None if self.few_shot is None else json.dumps(self.few_shot, sort_keys=True),
        }


def _clock(point: _Point) -> dict[str, Any]:
    names = ("step", "seconds", "forward", "backward")
    return {name: getattr(point.snapshot, name, None) for name in names} | {"last": point.last}


def _changes(settings: DistillSettings, base: DistillSettings) -> dict[str, Any]:
    one, other = settings.model_dump(mode="json"), base.model_dump(mode="json")
    return {key: one[key] for key in one if one[key] != other[key]}
