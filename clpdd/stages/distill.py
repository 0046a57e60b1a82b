"""The distillation stage: one method with one encoder, from cached features to a distilled dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalogue.methods import METHODS
from ..datasets.index import Index
from ..distilled.classifier import Classifier
from ..distilled.dataset import DistilledSet
from ..distributed.group import ALONE, Ranks
from ..distributed.work import produce, shared
from ..encoders.calling import pass_through, resolve_precision
from ..encoders.deterministic import deterministic
from ..encoders.encoder import Encoder, first_difference
from ..errors import ArtifactError, SettingsError
from ..features.kernels import Kernels
from ..features.same_images import refuse_other_images
from ..features.store import FeatureStore
from ..features.versions import confirm
from ..methods.loading import load_method, modules_of
from ..optimise.context import SILENT, Context, Method, Watch
from ..runtime.machine import limit
from ..storage.files import sha256_tree
from ..storage.provenance import code_digest
from ..storage.work import fingerprint

if TYPE_CHECKING:
    from ..config.variants import MethodVariant
    from .project import Project, Run, TrainingData

__all__ = ["distill", "run_distill"]


def run_distill(project: Project, encoder: str, method: str, watch: Watch = SILENT) -> DistilledSet:
    """One distilled dataset of a project: ``method`` is a name in its ``methods``."""
    variant, target = project.settings.variant(method), project.layout.distilled(encoder, method)
    item = f"{encoder}/{method}"
    project.take("distill", item, target, "seed", encoder=encoder, kind=variant.method, distill=variant.deciding)
    return distill(
        variant,
        project.training(encoder),
        project.encoder(encoder),
        target,
        seed=project.settings.seed,
        run=project.run,
        watch=watch,
    )


def distill(
    variant: MethodVariant,
    data: TrainingData,
    encoder: Encoder,
    target: Path,
    *,
    seed: int = 0,
    run: Run,
    watch: Watch = SILENT,
) -> DistilledSet:
    """Distil the training split with one method and write the result to ``target``.

    A killed run is continued by calling again with the same arguments, and ends in the same bytes. Beside the set lies
    ``classifier.safetensors``, the encoder's closed-form probe on all training images: what others need to let an
    encoder of theirs inherit it.

    Args:
        variant: a method, its settings, and what the result is called.
        data: the artifacts to start from, made with ``encoder``.
        target: folder of the distilled dataset.
        seed: of all random numbers.
        run: where partial work lives and who shares it. Ranks share the images and what these are scored on; a method
            that optimises nothing is left to rank 0. Results differ from those of one process by rounding, and a run
            may go on with another number of ranks.
        watch: who is shown the steps. Steps that an earlier, killed attempt has passed are not shown again to
            ``on_snapshot``, nor is anything of a finished run.

    Raises:
        SettingsError: an unknown method, or settings the data cannot serve.
        ArtifactError: inputs that are missing, damaged, or made with another encoder or index.
        Preempted, NumericalError, ResourceError, BusyError: see ``clpdd.errors``.
    """
    method, entry, settings, ranks = load_method(variant.method), METHODS[variant.method], variant.settings, run.ranks
    if entry.images:
        encoder.require_square(f"the method {variant.name}")
    opened = _open_inputs(data, encoder)
    per_class = settings.per_class(opened.index.class_names)  # refuses names that are no classes
    if entry.optimises:
        _refuse_idle_ranks(ranks, sum(per_class), opened)
    relevant = variant.deciding
    device = encoder.device
    record = fingerprint(
        method=variant.method,
        name=variant.name,
        settings=relevant,
        seed=seed,
        inputs=opened.digests | {"kernels": sha256_tree(data.kernels), "encoder": encoder.digest},
        device=device.type,
        precision=str(resolve_precision(settings.precision, device)) if "precision" in relevant else None,
        code=code_digest("clpdd.stages.distill", *modules_of(variant.method, settings), *encoder.code),
    )
    work = run.folder("distill", f"{encoder.name}/{variant.name}", record)
    with shared(work, ranks):
        info: dict[str, Any] = {
            "method": variant.method,
            "name": variant.name,
            "dataset": opened.index.dataset,
            "images_per_class": settings.images_per_class,
            "encoder": encoder.describe(),
            "feature_mean": opened.kernels.mean.tolist(),
            "settings": relevant | {"seed": seed},
            "fingerprint": work.digest,
        }

        def made_by(other: str) -> DistilledSet:
            """The set that another method makes of the same inputs, unless its own run has made it already."""
            return distill(
                replace(variant, name=other, method=other),
                data,
                encoder,
                work.path / "source",
                seed=seed,
                run=replace(run, wait=math.inf),
            )

        def make() -> None:
            # by all ranks, though a method that optimises nothing is left to rank 0: ranks make the source together
            source = made_by(getattr(settings, entry.source)) if entry.source else None
            context = Context(
                settings=settings,
                seed=seed,
                encoder=encoder,
                index=opened.index,
                train=opened.train,
                validation=opened.validation,
                kernels=opened.kernels,
                work=work.path,
                record=info,
                watch=watch,
                runtime=run.runtime,
                source=source,
                ranks=ranks if entry.optimises else ALONE,
            )
            if entry.optimises or ranks.is_main:
                result = _compute(method, context, strictly=entry.optimises and run.runtime.deterministic)
                if ranks.is_main:
                    result.save(work.out / "set")
                    _full_data_classifier(opened, encoder).save(work.out / "set" / "classifier.safetensors")

        made = produce(work, ranks, make, {"set": target}, discard=("checkpoints", "frames", "source"))
    result = DistilledSet.load(target)
    if not made and ranks.is_main:
        _replay(result, watch)
    return result


@dataclass(frozen=True)
class _Inputs:
    """The artifacts of ``TrainingData``, opened."""

    index: Index
    train: FeatureStore
    validation: FeatureStore
    kernels: Kernels

    @property
    def digests(self) -> dict[str, str]:
        return {"index": self.index.digest, "train": self.train.digest, "validation": self.validation.digest}


def _open_inputs(data: TrainingData, encoder: Encoder) -> _Inputs:
    """Refuse what was not made with this encoder as it encodes now, or not from each other."""
    opened = _Inputs(
        Index.open(data.index),
        FeatureStore.open(data.train),
        FeatureStore.open(data.validation),
        Kernels.load(data.kernels),
    )
    made_with: dict[Path, Mapping[str, Any]] = {
        data.train: opened.train.encoder,
        data.validation: opened.validation.encoder,
        data.kernels: opened.kernels.encoder,
    }
    for path, made in made_with.items():
        field = first_difference(made, encoder)
        if field is not None:
            raise ArtifactError(
                f"{path} was made with another encoder than {encoder.name}, or with other settings of it ({field} "
                f"differs): run cache and kernels again"
            )
    for store, split in ((opened.train, "train"), (opened.validation, "validation")):
        if store.split != split:
            raise ArtifactError(f"{store.path} holds the split {store.split!r} where {split!r} is needed")
        if opened.kernels.digests[split] != store.digest:
            raise ArtifactError(f"{data.kernels} was made from other features than {store.path}: run kernels again")
    refuse_other_images(opened.train, opened.index)
    confirm(opened.train, encoder, data.index)
    if opened.validation.versions != opened.train.versions:
        raise ArtifactError(
            f"{data.validation} was made by other versions of the libraries than {data.train}: run cache again"
        )
    if opened.validation.jpeg != opened.train.jpeg:
        raise ArtifactError(
            f"{data.validation} was made with cache.jpeg: {opened.validation.jpeg}, and {data.train} with "
            f"{opened.train.jpeg}: run cache again"
        )
    return opened


def _full_data_classifier(opened: _Inputs, encoder: Encoder) -> Classifier:
    """The kernel stage's ridge probe on all training features; its logits are no calibrated ones."""
    kernels = opened.kernels
    names = opened.index.class_names
    scores = {entry["ridge"]: entry["validation_top1"] for entry in kernels.ridge_scores}
    info = {"dataset": opened.index.dataset, "method": "full", "images": kernels.n, "protocol": "closed_form"}
    info |= {"ridge": kernels.ridge, "validation_top1": scores[kernels.ridge]}
    return Classifier(kernels.weights.T, kernels.bias, names, encoder.describe(), info)


def _refuse_idle_ranks(ranks: Ranks, images: int, opened: _Inputs) -> None:
    counts = images, len(opened.train), len(opened.validation)
    if ranks.size > min(counts):
        raise SettingsError(
            f"{ranks.size} ranks share {counts[0]} synthetic, {counts[1]} training and {counts[2]} validation images, "
            f"and each needs one of all: start at most {min(counts)}"
        )


def _compute(method: Method, context: Context, strictly: bool) -> DistilledSet:
    """Run the method; ``strictly`` only if the encoder's passes can be the same every time."""
    encoder = context.encoder
    attempt = (lambda: pass_through(encoder, context.settings.precision)) if strictly else None
    device = encoder.device
    with deterministic(device, attempt), limit(device, context.runtime.memory):
        return method(context)


def _replay(result: DistilledSet, watch: Watch) -> None:
    """Tell the readings of a finished run, as if its steps were taken now."""
    if watch.on_progress is None:
        return
    curves = result.info.get("curves", {})
    losses = dict(curves.get("loss", []))
    for step, score in curves.get("validation_top1", []):
        watch.on_progress(step, {"loss": losses[step], "validation_top1": score})
