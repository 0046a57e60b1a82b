"""What evaluation reads: the features and kernels of an encoder, and distilled sets that must belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalogue.methods import selects
from ..datasets.index import Index
from ..distilled.dataset import DistilledSet
from ..encoders.encoder import Encoder, first_difference
from ..errors import ArtifactError, DataError, first_few
from ..features.kernels import Kernels
from ..features.same_images import refuse_other_images
from ..features.store import FeatureStore
from .subject import Bench

__all__ = ["EvaluationData", "open_bench", "open_benches", "open_set"]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """Everything of the real data that one encoder is evaluated with. Only here is there a test split.

    Attributes:
        encoder: on the device to compute on.
        train, validation, test: feature stores. Train and validation are read for the method ``full`` alone.
        kernels: folder of the kernel stage.
        test_index: of the test split: test features of other images are refused, and those that other versions of the
            libraries made are compared with what the encoder gives for some of its images now. ``None``, or a file that
            is not there, compares nothing of the images.
    """

    encoder: Encoder
    train: Path
    validation: Path
    test: Path
    kernels: Path
    test_index: Path | None = None


def open_bench(name: str, data: EvaluationData, judge: str = "test") -> Bench:
    """What is needed to judge sets with one encoder.

    Args:
        name: what messages call the encoder.
        judge: the split that probes are scored on. With ``validation`` the test split is not opened.

    Raises:
        ArtifactError: a store or the kernels are missing, damaged, or made with another encoder, or the test features
            are of other images than the test index holds.
        DataError: the judging split holds no images.
    """
    encoder, kernels = data.encoder, data.kernels
    stores = {"train": data.train, "validation": data.validation, judge: getattr(data, judge)}
    opened = {split: FeatureStore.open(path) for split, path in stores.items()}
    for split, store in opened.items():
        if store.split != split:
            raise ArtifactError(f"{stores[split]} holds the split {store.split}, not {split}: run cache again")
        _same_encoder(store.encoder, encoder, name, f"{stores[split]} was made", "cache")
    if judge == "test" and data.test_index is not None and data.test_index.exists():
        refuse_other_images(opened[judge], Index.open(data.test_index))
    if not len(opened[judge]):
        raise DataError(f"{stores[judge]} holds no images: the {judge} split is empty, see dataset.{judge}_fraction")
    moments = Kernels.load(kernels)
    _same_encoder(moments.encoder, encoder, name, f"{kernels} was made", "kernels")
    if any(moments.digests.get(split) != opened[split].digest for split in ("train", "validation")):
        raise ArtifactError(f"{kernels} was made from other features than {stores['train']}: run kernels again")
    ways = {split: store.jpeg for split, store in opened.items()}
    if len(set(ways.values())) > 1:
        told = ", ".join(f"{split} {way}" for split, way in ways.items())
        raise ArtifactError(f"features of {name} were made with more than one cache.jpeg ({told}): run cache again")
    return Bench(encoder, opened["train"], opened["validation"], opened[judge], moments)


def open_benches(encoders: Mapping[str, EvaluationData], judge: str = "test") -> dict[str, Bench]:
    """A bench for each encoder, all of them for the same images. Raises as ``open_bench`` does."""
    benches = {name: open_bench(name, data, judge) for name, data in encoders.items()}
    first = next(iter(benches.values()))
    for bench in benches.values():
        if bench.judge.index != first.judge.index:
            raise ArtifactError(
                f"{bench.judge.path} and {first.judge.path} hold other images: run cache again for both"
            )
    return benches


def open_set(folder: Path, key: tuple[str, str], encoders: Mapping[str, Encoder], bench: Bench) -> DistilledSet:
    """A set by (encoder it was distilled with, method). Raises ``ArtifactError`` when it is not what it is to be."""
    distil, method = key
    data = DistilledSet.load(folder)
    if data.name != method:
        raise ArtifactError(f"{folder} was made by the method {data.name}, not {method}: distil again")
    if not len(data) and data.method != "full":
        raise ArtifactError(f"{folder} holds no images, so no probe can be trained on it: distil again")
    known = list(bench.judge.class_names)
    if data.class_names != known:
        raise ArtifactError(
            f"{folder} has {data.classes} classes ({first_few(data.class_names)}), but the test features have "
            f"{len(known)} ({first_few(known)}): distil, or cache, again with the same dataset"
        )
    if distil in encoders and data.info.get("encoder"):
        made = data.info["encoder"]
        real = selects(data.method)
        _same_encoder(made, encoders[distil], distil, f"{folder} was distilled", "distill", images=real)
    return data


def _same_encoder(
    found: Mapping[str, Any], encoder: Encoder, name: str, what: str, stage: str, images: bool = True
) -> None:
    field = first_difference(found, encoder, images)
    if field is not None:
        raise ArtifactError(
            f"{what} with another encoder than {name}: {field} {str(found.get(field))[:12]} instead of "
            f"{str(encoder.describe().get(field))[:12]}; run {stage} again"
        )
