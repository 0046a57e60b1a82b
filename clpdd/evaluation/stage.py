"""The stage: which pieces of work there are, what of them is done, and the files they end in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..config import EvaluateSettings
from ..distilled import DistilledSet
from ..encoders import Encoder
from ..errors import ArtifactError, DataError, Preempted, SettingsError
from ..features import FeatureStore
from ..files import explain_memory_errors, read_json, sha256_bytes, sha256_tree, write_bytes, write_json
from ..kernels import Kernels
from ..preemption import StopRequest
from ..provenance import code_digest
from ..work import WorkFolder, fingerprint
from .clocks import measured, read_record
from .protocols import Bench, Subject, Variant, run, variants
from .tables import Result, compact_json, details_json, metrics_json, plot_csv, results_parquet

__all__ = ["evaluate"]

log = logging.getLogger(__name__)

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
    benches = {name: _open_bench(name, encoder, stores[name], kernels[name]) for name, encoder in encoders.items()}
    first = next(iter(benches.values()))
    for name, bench in benches.items():
        if bench.test.index != first.test.index:
            raise ArtifactError(
                f"{stores[name]['test']} and {first.test.path} hold other images: run cache again for both"
            )
    sets = {key: _open_set(folder, key, encoders, first) for key, folder in distilled.items()}
    digests = {key: sha256_tree(folder) for key, folder in distilled.items()}
    common = {name: sha256_tree(folder) for name, folder in kernels.items() if name in encoders}
    jobs = [
        _Job(*key, target, sets[key], bench, settings, seed, digests[key], common[target])
        for target, bench in benches.items()
        for key in distilled
    ]
    results = _work_through(jobs, Path(work_root), wait)
    order = {key: i for i, key in enumerate(distilled)}
    results.sort(key=lambda r: order[r.distil, r.method])  # stable: within a set in the order of encoders, protocols
    counts = torch.bincount(first.test.labels, minlength=first.classes).tolist()
    contents = {
        "results.parquet": results_parquet(results),
        "metrics.json": metrics_json(results),
        "details.json": details_json(results, list(first.test.class_names), counts),
        "plots/accuracy.csv": plot_csv(results),
    }
    for name, data in contents.items():
        write_bytes(Path(out) / name, data)
    if clocks is not None:
        write_json(Path(clocks) / "evaluate.json", _read_clocks(jobs, Path(work_root)))
    return {name: Path(out) / name for name in contents}


# -- inputs ------------------------------------------------------------------------------------------------------------


def _open_bench(name: str, encoder: Encoder, stores: Mapping[str, Path], kernels: Path) -> Bench:
    opened = {split: FeatureStore.open(stores[split]) for split in ("train", "validation", "test")}
    for split, store in opened.items():
        if store.split != split:
            raise ArtifactError(f"{stores[split]} holds the split {store.split}, not {split}: run cache again")
        _same_encoder(store.encoder, encoder, name, f"{stores[split]} was made", "cache")
    if not len(opened["test"]):
        raise DataError(f"{stores['test']} holds no images: the test split is empty, see dataset.test_fraction")
    moments = Kernels.load(kernels)
    _same_encoder(moments.encoder, encoder, name, f"{kernels} was made", "kernels")
    if any(moments.digests.get(split) != opened[split].digest for split in ("train", "validation")):
        raise ArtifactError(f"{kernels} was made from other features than {stores['train']}: run kernels again")
    return Bench(encoder, opened["train"], opened["validation"], opened["test"], moments)


def _open_set(folder: Path, key: tuple[str, str], encoders: Mapping[str, Encoder], bench: Bench) -> DistilledSet:
    distil, method = key
    data = DistilledSet.load(folder)
    if data.name != method:
        raise ArtifactError(f"{folder} was made by the method {data.name}, not {method}: distil again")
    if not len(data) and data.method != "full":
        raise ArtifactError(f"{folder} holds no images, so no probe can be trained on it: distil again")
    known = list(bench.test.class_names)
    if data.class_names != known:
        raise ArtifactError(
            f"{folder} has {data.classes} classes ({_some(data.class_names)}), but the test features have {len(known)} "
            f"({_some(known)}): distil, or cache, again with the same dataset"
        )
    if distil in encoders and data.info.get("encoder"):
        _same_encoder(data.info["encoder"], encoders[distil], distil, f"{folder} was distilled", "distill")
    return data


def _same_encoder(found: Mapping[str, Any], encoder: Encoder, name: str, what: str, stage: str) -> None:
    wanted = encoder.describe()
    for field in ("digest", "size"):
        if found.get(field) != wanted[field]:
            raise ArtifactError(
                f"{what} with another encoder than {name}: {field} {str(found.get(field))[:12]} instead of "
                f"{str(wanted[field])[:12]}; run {stage} again"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


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
        inputs = {"encoder": bench.encoder.describe(), "kernels": self.kernels_digest, "test": bench.test.digest}
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
        )
        return WorkFolder(root, "evaluate", item, parts, wait)

    def result(self, variant: Variant, piece: dict[str, Any], work: WorkFolder) -> Result:
        info = self.data.info
        ipc = None if self.full else int(info.get("images_per_class") or len(self.data.draws[0]) // self.data.classes)
        dataset = str(info.get("dataset", "unknown"))
        return Result(dataset, self.method, self.distil, self.target, variant, ipc, work.digest, work.parts, piece)


def _work_through(jobs: list[_Job], root: Path, wait: float) -> list[Result]:
    results = []
    with StopRequest() as stop, tqdm(total=sum(len(j.variants) for j in jobs), disable=None, unit="probe set") as bar:

        def tick() -> None:
            if stop.name is not None:
                raise Preempted(f"stopped by {stop.name}: finished evaluations are kept, start again to go on")

        for job in jobs:
            subject: Subject | None = None
            with job.room(root, wait) as work:
                for variant in job.variants:
                    tick()
                    bar.set_description(f"{job.method} {variant}")
                    file = work.out / f"{variant}.json"
                    piece = _read_piece(file)
                    if piece is None:
                        subject = subject or Subject(job.data, job.bench, job.settings, job.seed, tick)
                        lower = f"lower evaluate.encoder_batch (now {job.settings.encoder_batch}) or evaluate.views"
                        with measured(work.path / _CLOCKS, variant, subject), explain_memory_errors(lower):
                            piece = run(subject, variant)
                        _write_piece(file, piece)
                    results.append(job.result(variant, piece, work))
                    bar.update()
                if subject is not None or not (work.path / "done.json").exists():  # or killed just before this line
                    work.finish()
    return results


def _write_piece(file: Path, piece: dict[str, Any]) -> None:
    text = compact_json(piece)
    write_bytes(file, compact_json({"sha256": sha256_bytes(text.encode()), "piece": piece}).encode())


def _read_piece(file: Path) -> dict[str, Any] | None:
    """A piece of an earlier run; ``None`` when there is none, or (with a warning) when it is not what was written."""
    if not file.exists():
        return None
    with contextlib.suppress(ArtifactError, AttributeError, TypeError):
        found = read_json(file)
        piece: dict[str, Any] = found.get("piece")
        if found.get("sha256") == sha256_bytes(compact_json(piece).encode()):
            return piece
    log.warning("%s was altered since it was written: it is made again", file)
    return None


def _read_clocks(jobs: list[_Job], root: Path) -> dict[str, Any]:
    """The sidecar: a row for each piece; a piece that several sets share counts once in the sum."""
    rows, seconds = [], {}
    for job in jobs:
        file = job.room(root, 0).path / _CLOCKS
        record = read_record(file)
        for variant in job.variants:
            if str(variant) in record:
                names = {"distil_encoder": job.distil, "method": job.method, "eval_encoder": job.target}
                rows.append(names | {"protocol": variant.protocol, "views": variant.views} | record[str(variant)])
                seconds[file, variant] = record[str(variant)]["seconds"]
    return {
        "stage": "evaluate",
        "item": "",
        "seconds": sum(seconds.values()),
        "peak_memory_mb": max((row["peak_memory_mb"] for row in rows), default=0.0),
        "device": jobs[0].bench.encoder.mean.device.type,
        "rows": rows,
    }
