"""The stage: which pieces of work there are, what of them is done, and the files they end in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import EvaluateSettings
from ..deterministic import deterministic
from ..distilled import DistilledSet
from ..encoders import Encoder
from ..errors import ArtifactError, Preempted, SettingsError
from ..files import explain_memory_errors, sha256_bytes, sha256_tree, write_bytes, write_json
from ..precision import resolve_precision
from ..preemption import StopRequest
from ..progress import Progress
from ..provenance import code_digest
from ..work import WorkFolder, fingerprint
from .clocks import measured, read_record
from .inputs import open_bench, open_set
from .pieces import read_piece, write_piece
from .protocols import Bench, Subject, Variant, run, variants
from .tables import Result, details_json, metrics_json, plot_csv, results_parquet

__all__ = ["evaluate"]

_CLOCKS = "clocks.json"


def evaluate(
    distilled: Mapping[tuple[str, str], Path],
    encoders: Mapping[str, Encoder],
    stores: Mapping[str, Mapping[str, Path]],
    kernels: Mapping[str, Path],
    settings: EvaluateSettings,
    seed: int,
    out: Path,
    work_root: Path,
    clocks: Path | None = None,
    *,
    wait: float = 0.0,
) -> dict[str, Path]:
    """Evaluate distilled sets and write the results.

    Work is done in pieces (a set, an encoder, a protocol). A killed run is continued by calling again with the same
    arguments: whole pieces are kept, and the files end in the same bytes.

    Args:
        distilled: (encoder it was distilled with, method) -> folder. The order is that of the rows.
        encoders: encoders to evaluate with, on the device to compute on; every set is tried with every one of them.
        stores: encoder -> ``{"train", "validation", "test"}`` -> feature store. Train and validation are read for the
            method ``full`` alone.
        kernels: encoder -> folder of the kernel stage.
        out: folder of ``results.parquet`` (a row for each probe), ``metrics.json``, ``details.json`` (per class) and
            ``plots/accuracy.csv``.
        work_root: where partial work lives.
        clocks: folder that takes ``evaluate.json``, seconds and peak memory of every piece; ``None`` writes none.
        wait: seconds to wait for another run of the same work.

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
    benches = _open_benches(encoders, stores, kernels)
    first = next(iter(benches.values()))
    sets = {key: open_set(folder, key, encoders, first) for key, folder in distilled.items()}
    digests = {key: sha256_tree(folder) for key, folder in distilled.items()}
    common = {name: sha256_tree(folder) for name, folder in kernels.items() if name in encoders}
    jobs = [
        _Job(*key, target, sets[key], bench, settings, seed, digests[key], common[target])
        for target, bench in benches.items()
        for key in distilled
    ]
    with deterministic(first.encoder.mean.device):
        results = _work_through(jobs, Path(work_root), wait)
    order = {key: i for i, key in enumerate(distilled)}
    results.sort(key=lambda r: order[r.distil, r.method])  # stable: within a set in the order of encoders, protocols
    contents = _contents(results, first)
    for name, data in contents.items():
        write_bytes(Path(out) / name, data)
    if clocks is not None:
        write_json(Path(clocks) / "evaluate.json", _read_clocks(jobs, Path(work_root)))
    return {name: Path(out) / name for name in contents}


def _open_benches(
    encoders: Mapping[str, Encoder], stores: Mapping[str, Mapping[str, Path]], kernels: Mapping[str, Path]
) -> dict[str, Bench]:
    """A bench for each encoder, all of them for the same test images."""
    benches = {name: open_bench(name, encoder, stores[name], kernels[name]) for name, encoder in encoders.items()}
    first = next(iter(benches.values()))
    for name, bench in benches.items():
        if bench.judge.index != first.judge.index:
            raise ArtifactError(
                f"{stores[name]['test']} and {first.judge.path} hold other images: run cache again for both"
            )
    return benches


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


@dataclass(frozen=True, eq=False)
class _Job:
    """A set on a bench: the pieces that share one work folder."""

    distil: str
    method: str
    target: str
    data: DistilledSet
    bench: Bench
    settings: EvaluateSettings
    seed: int
    set_digest: str
    kernels_digest: str

    @property
    def full(self) -> bool:
        return not len(self.data)

    @property
    def variants(self) -> list[Variant]:
        return variants(self.settings, self.full)

    def room(self, root: Path, wait: float) -> WorkFolder:
        """The work folder. All real data are the same whoever distils: such a set is evaluated once an encoder."""
        bench = self.bench
        inputs = {"encoder": bench.encoder.describe(), "kernels": self.kernels_digest, "test": bench.judge.digest}
        if bench.judge.groups is not None:
            inputs["groups"] = sha256_bytes("\0".join(bench.judge.groups).encode())
        settings = self.settings.model_dump(mode="json", exclude={"protocols", "random_draws"})
        if self.full:
            inputs |= {"train": bench.train.digest, "validation": bench.validation.digest}
            item, settings = f"{self.method}/{self.target}", {}
        else:
            inputs |= {"distilled": self.set_digest}
            item, settings = f"{self.distil}/{self.method}/{self.target}", settings | {"seed": self.seed}
        parts = fingerprint(
            settings=settings,
            inputs=inputs,
            code=code_digest("clpdd.evaluation"),
            device=bench.encoder.mean.device.type,
            precision=None if self.full else str(resolve_precision(self.settings.precision, bench.encoder.mean.device)),
        )
        return WorkFolder(root, "evaluate", item, parts, wait)

    def result(self, variant: Variant, piece: dict[str, Any], work: WorkFolder) -> Result:
        info = self.data.info
        # where classes differ in number, the mean rounded down
        ipc = None if self.full else len(self.data.draws[0]) // self.data.classes
        dataset = str(info.get("dataset", "unknown"))
        return Result(dataset, self.method, self.distil, self.target, variant, ipc, work.digest, work.parts, piece)


def _work_through(jobs: list[_Job], root: Path, wait: float) -> list[Result]:
    results = []
    with StopRequest() as stop, Progress(sum(len(j.variants) for j in jobs), "evaluate", "probe set") as bar:

        def tick() -> None:
            if stop.name is not None:
                raise Preempted(f"stopped by {stop.name}: finished evaluations are kept, start again to go on")

        for job in jobs:
            subject: Subject | None = None
            with job.room(root, wait) as work:
                for variant in job.variants:
                    tick()
                    bar.rename(f"{job.method} {variant}")
                    file = work.out / f"{variant}.json"
                    piece = read_piece(file)
                    if piece is None:
                        subject = subject or Subject(job.data, job.bench, job.settings, job.seed, tick)
                        lower = f"lower evaluate.encoder_batch (now {job.settings.encoder_batch}) or evaluate.views"
                        with measured(work.path / _CLOCKS, variant, subject), explain_memory_errors(lower):
                            piece = run(subject, variant)
                        write_piece(file, piece)
                    results.append(job.result(variant, piece, work))
                    bar.update()
                if subject is not None or not (work.path / "done.json").exists():  # or killed just before this line
                    work.finish()
    return results


def _read_clocks(jobs: list[_Job], root: Path) -> dict[str, Any]:
    """The sidecar: a row for each piece. In the sum, pieces and encoding that several of them share count once."""
    rows, seconds = [], {}
    for job in jobs:
        file = job.room(root, 0).path / _CLOCKS
        record = read_record(file)
        for variant in job.variants:
            if str(variant) in record:
                names = {"distil_encoder": job.distil, "method": job.method, "eval_encoder": job.target}
                rows.append(names | {"protocol": variant.protocol, "views": variant.views} | record[str(variant)])
                seconds[file, variant] = record[str(variant)]["seconds"] - record[str(variant)].get(
                    "shared_seconds", 0.0
                )
    return {
        "stage": "evaluate",
        "item": "",
        "seconds": sum(seconds.values()),
        "peak_memory_mb": max((row["peak_memory_mb"] for row in rows), default=0.0),
        "device": jobs[0].bench.encoder.mean.device.type,
        "rows": rows,
    }
