"""The distillation stage: one method with one encoder, from cached features to a distilled dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import DistillSettings, RuntimeSettings
from .config.variants import OPTIMISING
from .datasets import Index
from .deterministic import deterministic
from .distilled import DistilledSet
from .encoders import Encoder
from .errors import ArtifactError, SettingsError
from .features import FeatureStore
from .files import sha256_tree
from .kernels import Kernels
from .memory import limit
from .methods import METHODS, Context, Method, OnProgress, Snapshot
from .precision import pass_through, resolve_precision
from .provenance import code_digest
from .ranks import ALONE, Ranks
from .shared_work import produce, shared
from .work import WorkFolder, fingerprint

__all__ = ["distill"]

# How often partial work is saved decides what a kill costs, never what comes out.
_WITHOUT_EFFECT = {"checkpoint_every_steps", "checkpoint_every_seconds"}


def distill(
    method: str,
    *,
    index: Path,
    train: Path,
    validation: Path,
    kernels: Path,
    encoder: Encoder,
    target: Path,
    work_root: Path,
    settings: DistillSettings | None = None,
    seed: int = 0,
    random_draws: int = 5,
    wait: float = 0.0,
    on_progress: OnProgress | None = None,
    name: str | None = None,
    snapshots: Container[int] = (),
    on_snapshot: Callable[[Snapshot], None] | None = None,
    budget: float | None = None,
    runtime: RuntimeSettings | None = None,
    ranks: Ranks = ALONE,
) -> DistilledSet:
    """Distil the training split with one method and write the result to ``target``.

    A killed run is continued by calling again with the same arguments, and ends in the same bytes.

    Args:
        method: a name in ``clpdd.methods.METHODS``.
        index: Parquet index of the training split.
        train, validation: feature stores of the two splits, made with ``encoder``.
        kernels: folder of the kernel stage for that encoder.
        target: folder of the distilled dataset.
        work_root: where partial work lives.
        settings: ``None`` takes the defaults.
        random_draws: draws of the method ``random``.
        wait: seconds to wait for another run of the same work.
        on_progress: called with a step and its readings.
        name: what the result is called; ``None`` takes the method's name.
        snapshots, on_snapshot: steps (0 is the start) whose images are shown to ``on_snapshot`` as they are reached.
            Steps that an earlier, killed attempt has passed are not shown again, nor is anything of a finished run.
        budget: seconds of steps at which ``on_snapshot`` ends the run: told instead of the steps that are left.
        runtime: where features and images are kept, and in how much memory: of the result it decides last bits alone.
        ranks: this process among those that call this with the same arguments. They share the images and what these
            are scored on; a method that optimises nothing is left to rank 0. Results differ from those of one process
            by rounding, and a run may go on with another number of ranks.

    Raises:
        SettingsError: an unknown method, or settings the data cannot serve.
        ArtifactError: inputs that are missing, damaged, or made with another encoder or index.
        Preempted, NumericalError, ResourceError, BusyError: see ``clpdd.errors``.
    """
    settings = settings or DistillSettings()
    name = name or method
    if method not in METHODS:
        raise SettingsError(f"methods: unknown method {method!r}; known are {', '.join(METHODS)}")
    chosen = METHODS[method]
    opened = _open_inputs(index, train, validation, kernels, encoder)
    settings.per_class(opened.index.class_names)  # refuses names that are no classes
    spread = method in OPTIMISING
    if spread:
        _refuse_idle_ranks(ranks, settings, opened)
    relevant = _relevant(settings, chosen.settings_used)
    parts = fingerprint(
        method=method,
        name=name,
        settings=relevant,
        seed=seed,
        random_draws=random_draws if method == "random" else None,
        inputs=opened.digests | {"kernels": sha256_tree(kernels), "encoder": encoder.digest},
        device=encoder.mean.device.type,
        precision=str(resolve_precision(settings.precision, encoder.mean.device)) if "precision" in relevant else None,
        code=code_digest("clpdd.distill"),
    )
    work = WorkFolder(work_root, "distill", f"{encoder.name}/{name}", parts, wait)
    with shared(work, ranks):
        record: dict[str, Any] = {
            "method": method,
            "name": name,
            "dataset": opened.index.dataset,
            "images_per_class": settings.images_per_class,
            "encoder": encoder.describe(),
            "feature_mean": opened.kernels.mean.tolist(),
            "settings": relevant | {"seed": seed},
            "fingerprint": work.digest,
        }

        def make() -> None:
            context = Context(
                settings,
                seed,
                encoder,
                opened.index,
                opened.train,
                opened.validation,
                opened.kernels,
                work.path,
                record,
                random_draws,
                on_progress=on_progress,
                snapshots=snapshots,
                on_snapshot=on_snapshot,
                budget=budget,
                runtime=runtime or RuntimeSettings(),
                source=source(work.path / "source") if method == "neighbor" else None,
                ranks=ranks if spread else ALONE,
            )
            if ranks.first or spread:
                result = _compute(chosen, context, strictly=spread and context.runtime.deterministic)
                if ranks.first:
                    result.save(work.out / "set")

        def source(folder: Path) -> DistilledSet:
            """What the neighbours are neighbours of: made here unless that method's own run has made it already."""
            return distill(
                settings.neighbor_of,
                index=index,
                train=train,
                validation=validation,
                kernels=kernels,
                encoder=encoder,
                target=folder,
                work_root=work_root,
                settings=settings,
                seed=seed,
                wait=math.inf,
                runtime=runtime,
                ranks=ranks,
            )

        made = produce(work, ranks, make, {"set": target}, discard=("checkpoints", "frames", "source"))
    result = DistilledSet.load(target)
    if not made and on_progress is not None and ranks.first:
        _replay(result, on_progress)
    return result


@dataclass(frozen=True)
class _Inputs:
    """The artifacts that distillation starts from."""

    index: Index
    train: FeatureStore
    validation: FeatureStore
    kernels: Kernels

    @property
    def digests(self) -> dict[str, str]:
        return {"index": self.index.digest, "train": self.train.digest, "validation": self.validation.digest}


def _open_inputs(index: Path, train: Path, validation: Path, kernels: Path, encoder: Encoder) -> _Inputs:
    """Refuse what was not made with this encoder, or not from each other."""
    opened = _Inputs(Index.open(index), FeatureStore.open(train), FeatureStore.open(validation), Kernels.load(kernels))
    for path, made in ((train, opened.train), (validation, opened.validation), (kernels, opened.kernels)):
        if made.encoder.get("digest") != encoder.digest or made.encoder.get("size") != encoder.size:
            raise ArtifactError(
                f"{path} was made with another encoder than {encoder.name}: run cache and kernels again"
            )
    for store, split in ((opened.train, "train"), (opened.validation, "validation")):
        if store.split != split:
            raise ArtifactError(f"{store.path} holds the split {store.split!r} where {split!r} is needed")
        if opened.kernels.digests[split] != store.digest:
            raise ArtifactError(f"{kernels} was made from other features than {store.path}: run kernels again")
    if opened.index.split != "train" or opened.train.index != opened.index.digest:
        raise ArtifactError(f"{train} does not hold the images of {index}: run cache again")
    return opened


def _refuse_idle_ranks(ranks: Ranks, settings: DistillSettings, opened: _Inputs) -> None:
    counts = sum(settings.per_class(opened.index.class_names)), len(opened.train), len(opened.validation)
    if ranks.size > min(counts):
        raise SettingsError(
            f"{ranks.size} ranks share {counts[0]} synthetic, {counts[1]} training and {counts[2]} validation images, "
            f"and each needs one of all: start at most {min(counts)}"
        )


def _compute(method: Method, context: Context, strictly: bool) -> DistilledSet:
    """Run the method; ``strictly`` only if the encoder's passes can be the same every time."""
    encoder = context.encoder
    attempt = (lambda: pass_through(encoder, context.settings.precision)) if strictly else None
    device = encoder.mean.device
    with deterministic(device, attempt), limit(device, context.runtime.memory):
        return method(context)


def _relevant(settings: DistillSettings, used: tuple[str, ...] | None) -> dict[str, Any]:
    everything = settings.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    if used is None:
        return everything
    if settings.labels == "probe" and "labels" in used:
        used = (*used, "temperature")  # of the probe's predictions
    return {name: everything[name] for name in used}


def _replay(result: DistilledSet, on_progress: OnProgress) -> None:
    curves = result.info.get("curves", {})
    losses = dict(curves.get("loss", []))
    for step, score in curves.get("validation_top1", []):
        on_progress(step, {"loss": losses[step], "validation_top1": score})
