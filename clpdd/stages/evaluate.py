"""The evaluation stage: which pieces of work there are, what of them is done, and the files they end in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config.evaluate import EvaluateSettings
from ..distilled.dataset import DistilledSet
from ..encoders.calling import resolve_precision
from ..encoders.deterministic import deterministic
from ..encoders.encoder import Encoder
from ..errors import Preempted, SettingsError
from ..evaluation.clocks import measured, read_record
from ..evaluation.inputs import EvaluationData, open_benches, open_set
from ..evaluation.pieces import read_piece, write_piece
from ..evaluation.running import module_of, run_protocol, viewed_protocols
from ..evaluation.subject import Bench, Subject, ViewedProtocol
from ..evaluation.tables import Result, details_json, metrics_json, plot_csv, results_parquet
from ..features.versions import confirm
from ..runtime.machine import explain_memory_errors
from ..runtime.preemption import StopRequest
from ..runtime.progress import Progress
from ..storage.files import sha256_bytes, sha256_tree, write_bytes, write_json
from ..storage.layout import SPLITS, Layout
from ..storage.provenance import code_digest
from ..storage.work import WorkFolder, exclusive, fingerprint

if TYPE_CHECKING:
    from .project import Project, Run

__all__ = ["evaluate", "evaluation_data", "run_evaluate"]

_CLOCKS = "clocks.json"


def evaluate(
    distilled: Mapping[tuple[str, str], Path],
    encoders: Mapping[str, EvaluationData],
    settings: EvaluateSettings,
    out: Path,
    *,
    seed: int = 0,
    run: Run,
) -> dict[str, Path]:
    """Evaluate distilled sets and write the results.

    Work is done in pieces (a set, an encoder, a protocol). A killed run is continued by calling again with the same
    arguments: whole pieces are kept, and the files end in the same bytes.

    Args:
        distilled: (encoder it was distilled with, method) -> folder. The order is that of the rows.
        encoders: what to evaluate with; every set is tried with every one of them.
        out: folder of ``results.parquet`` (a row for each probe), ``metrics.json``, ``details.json`` (per class) and
            ``plots/accuracy.csv``.
        seed: of the probes.
        run: where partial work lives; ``run.clocks`` takes ``evaluate.json``, seconds and peak memory of every piece.

    Returns:
        Paths of the written files by their names.

    Raises:
        ArtifactError: an input is missing, damaged, or made with another encoder or for other classes.
        DataError: the test split holds no images.
        Preempted: asked to stop; everything but the piece at hand is kept.
        NumericalError, ResourceError, BusyError: see ``clpdd.errors``.
    """
    if not distilled or not encoders:
        raise SettingsError("evaluate needs at least one method and one encoder: see methods and encoders")
    benches = open_benches(encoders)
    first = next(iter(benches.values()))
    known = {name: data.encoder for name, data in encoders.items()}
    sets = {key: open_set(folder, key, known, first) for key, folder in distilled.items()}
    digests = {key: sha256_tree(folder) for key, folder in distilled.items()}
    kernels = {name: sha256_tree(data.kernels) for name, data in encoders.items()}
    jobs = [
        _SetOnBench(
            distil=key[0],
            method=key[1],
            target=target,
            data=sets[key],
            bench=bench,
            teacher=benches.get(key[0]) if key[0] != target else None,
            settings=settings,
            seed=seed,
            set_digest=digests[key],
            kernels_digest=kernels[target],
            teacher_digest=kernels.get(key[0], ""),
        )
        for target, bench in benches.items()
        for key in distilled
    ]
    for job in jobs:
        if not job.full:
            job.bench.encoder.require_square(f"judging the images of {job.method}")
    for name in {job.target for job in jobs if not job.full}:
        if (index := encoders[name].test_index) is not None:
            confirm(benches[name].judge, benches[name].encoder, index)
    with deterministic(first.encoder.device):
        results = _work_through(jobs, run)
    order = {key: i for i, key in enumerate(distilled)}
    results.sort(key=lambda r: order[r.distil, r.method])  # stable: within a set in the order of encoders, protocols
    contents = _contents(results, first)
    for name, data in contents.items():
        write_bytes(Path(out) / name, data)
    clocks = run.work.parent / "clocks" if run.clocks is None else run.clocks
    write_json(clocks / "evaluate.json", _read_clocks(jobs, run))
    return {name: Path(out) / name for name in contents}


def _contents(results: list[Result], bench: Bench) -> dict[str, bytes]:
    """The files by their names; classes and test images are those of any bench."""
    counts = torch.bincount(bench.judge.labels, minlength=bench.classes).tolist()
    return {
        "results.parquet": results_parquet(results),
        "metrics.json": metrics_json(results),
        "details.json": details_json(results, list(bench.judge.class_names), counts),
        "plots/accuracy.csv": plot_csv(results),
    }


# -- pieces ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class _SetOnBench:
    """A set on a bench: the pieces that share one work folder."""

    distil: str
    method: str
    target: str
    data: DistilledSet
    bench: Bench
    teacher: Bench | None  # of the encoder that distilled, where it is another one
    settings: EvaluateSettings
    seed: int
    set_digest: str
    kernels_digest: str
    teacher_digest: str

    @property
    def full(self) -> bool:
        return not len(self.data)

    @property
    def protocols(self) -> list[ViewedProtocol]:
        return viewed_protocols(self.settings, self.full, self.teacher is not None)

    def folder(self, run: Run) -> WorkFolder:
        """The work folder. All real data are the same whoever distils: such a set is evaluated once an encoder."""
        bench = self.bench
        inputs = {"encoder": bench.encoder.describe(), "kernels": self.kernels_digest, "test": bench.judge.digest}
        if bench.judge.groups is not None:
            inputs["groups"] = sha256_bytes("\0".join(bench.judge.groups).encode())
        settings = self.settings.model_dump(mode="json", exclude={"protocols"})
        if self.full:
            inputs |= {"train": bench.train.digest, "validation": bench.validation.digest}
            item, settings = f"{self.method}/{self.target}", {}
        else:
            inputs |= {"distilled": self.set_digest}
            if self.teacher is not None:
                teacher = {"encoder": self.teacher.encoder.describe(), "kernels": self.teacher_digest}
                inputs |= {"teacher": teacher | {"train": self.teacher.train.digest}}
            item, settings = f"{self.distil}/{self.method}/{self.target}", settings | {"seed": self.seed}
        record = fingerprint(
            settings=settings,
            inputs=inputs,
            code=code_digest("clpdd.stages.evaluate", *bench.encoder.code),
            device=bench.encoder.device.type,
            precision=None if self.full else str(resolve_precision(self.settings.precision, bench.encoder.device)),
        )
        return run.folder("evaluate", item, record)

    def result(self, protocol: ViewedProtocol, piece: dict[str, Any], work: WorkFolder) -> Result:
        info = self.data.info
        counts = None if self.full else torch.bincount(self.data.draws[0].labels, minlength=self.data.classes)
        dataset = str(info.get("dataset", "unknown"))
        return Result(
            dataset=dataset,
            method=self.method,
            made_by=self.data.method,
            distil=self.distil,
            target=self.target,
            protocol=protocol,
            counts=None if counts is None else tuple(counts.tolist()),
            fingerprint=work.digest,
            record=work.record,
            piece=piece,
        )


def _views_told(views: str) -> str:
    kind, _, count = views.partition("-")
    return f" on {count} views" if kind == "bank" else ""


def _work_through(jobs: list[_SetOnBench], run: Run) -> list[Result]:
    results = []
    total = sum(len(job.protocols) for job in jobs)
    with StopRequest() as stop, Progress(total, "evaluate", "result", even=False) as bar:

        def tick() -> None:
            if stop.name is not None:
                raise Preempted(f"stopped by {stop.name}: finished evaluations are kept, start again to go on")
            bar.beat()

        for job in jobs:
            subject: Subject | None = None
            with job.folder(run) as work:
                for protocol in job.protocols:
                    tick()
                    bar.rename(f"evaluate {job.method} by {protocol.name}{_views_told(protocol.views)}")
                    file, code = work.out / f"{protocol}.json", code_digest(module_of(protocol.name))
                    piece = read_piece(file, code)
                    if piece is None:
                        subject = subject or Subject(job.data, job.bench, job.settings, job.seed, tick, job.teacher)
                        lower = f"lower evaluate.encoder_batch (now {job.settings.encoder_batch}) or evaluate.views"
                        with measured(work.path / _CLOCKS, protocol, subject), explain_memory_errors(lower):
                            piece = run_protocol(subject, protocol)
                        write_piece(file, piece, code)
                    results.append(job.result(protocol, piece, work))
                    bar.update()
                if subject is not None or not (work.path / "done.json").exists():  # or killed just before this line
                    work.finish()
    return results


def _read_clocks(jobs: list[_SetOnBench], run: Run) -> dict[str, Any]:
    """The sidecar: a row for each piece. In the sum, pieces and encoding that several of them share count once."""
    rows, seconds = [], {}
    for job in jobs:
        file = job.folder(run).path / _CLOCKS
        record = read_record(file)
        for protocol in job.protocols:
            if str(protocol) in record:
                names = {"distil_encoder": job.distil, "method": job.method, "eval_encoder": job.target}
                reading = record[str(protocol)]
                rows.append(names | {"protocol": protocol.name, "views": protocol.views} | reading)
                seconds[file, protocol] = reading["seconds"] - reading.get("shared_seconds", 0.0)
    return {
        "stage": "evaluate",
        "item": "",
        "seconds": sum(seconds.values()),
        "peak_memory_mb": max((row["peak_memory_mb"] for row in rows), default=0.0),
        "device": jobs[0].bench.encoder.device.type,
        "rows": rows,
    }


def run_evaluate(project: Project) -> dict[str, Path]:
    """Every distilled dataset of a project, judged with every encoder on the test split."""
    layout, settings = project.layout, project.settings
    with exclusive(layout.work, "evaluate", settings.runtime.wait_seconds):
        keys = ("seed", "encoders", "methods", "evaluate")
        project.take("evaluate", "", layout.results / "results.parquet", *keys)
        return evaluate(
            {(e, m): layout.distilled(e, m) for e in settings.encoders for m in settings.methods},
            {name: evaluation_data(layout, name, project.encoder(name)) for name in settings.encoders},
            settings.evaluate,
            layout.results,
            seed=settings.seed,
            run=project.run,
        )


def evaluation_data(layout: Layout, name: str, encoder: Encoder) -> EvaluationData:
    """What an encoder called ``name`` is evaluated with, where a data folder has it."""
    stores = {split: layout.features(name, split) for split in SPLITS}
    return EvaluationData(encoder=encoder, kernels=layout.kernels(name), test_index=layout.index("test"), **stores)
