"""What images stand for: numbers per class, and labels that are learned or taken from the full-data probe."""

from __future__ import annotations

import json
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import one_hot

from clpdd.config.augment import AugmentSettings
from clpdd.config.distill import DistillSettings
from clpdd.config.evaluate import EvaluateSettings
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.distilled.export import export
from clpdd.encoders.calling import encode
from clpdd.errors import ArtifactError, SettingsError
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.functional.targets import Targets, mean_predictions
from clpdd.methods.clp import ClosedFormProbe
from clpdd.methods.lgm import GradientMatch
from clpdd.optimise.context import Snapshot, Watch
from clpdd.probe.classifier import train_classifier
from clpdd.stages.distill import distill
from clpdd.storage.files import sha256_tree
from tests.runs import variant

from .conftest import World
from .contexts import context, start
from .pixels import gradient
from .test_distill import QUICK, SAVES


def run(world: World, root: Path, method: str = "clp", **settings: Any) -> DistilledSet:
    return distill(variant(method, DistillSettings(**QUICK | settings)), **world.inputs(root, **SAVES))


# -- numbers per class -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["clp", "lgm", "random", "centroid", "neighbor"])
def test_classes_have_the_images_they_were_given(world: World, tmp_path: Path, method: str) -> None:
    names = Index.open(world.layout.index("train")).class_names
    counts = {"default": 1, names[3]: 3, names[7]: 2}
    data = run(world, tmp_path, method, images_per_class=counts, steps=2, labels="probe")
    expected = [counts.get(name, 1) for name in names]
    assert data.draws[0].labels.bincount().tolist() == expected
    assert data.info["images_per_class"] == counts
    assert data.soft_labels is not None
    for label in range(len(names)):  # those of a class are the same
        assert len(data.soft_labels[data.labels == label].unique(dim=0)) == 1


def test_a_class_that_is_not_there_is_refused_with_near_names() -> None:
    settings = DistillSettings(images_per_class={"default": 1, "cta": 5})
    with pytest.raises(SettingsError, match=r"images_per_class names 'cta'.*near names: cat"):
        settings.per_class(["cat", "dog"])
    with pytest.raises(SettingsError, match=r"classes are owl, emu$"):
        settings.per_class(["owl", "emu"])
    with pytest.raises(SettingsError, match=r"classes are 1, 2, 3, 4, 5, \.\.\.$"):
        settings.per_class(list("123456"))
    assert settings.images(10) == 14


# -- learned -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ClosedFormProbe, GradientMatch])
@pytest.mark.parametrize("batch", [7, 512])  # two passes, one pass
def test_the_gradient_of_the_labels_is_that_of_the_loss(
    world: World, tmp_path: Path, kind: type[ClosedFormProbe] | type[GradientMatch], batch: int
) -> None:
    settings: dict[str, Any] = {"labels": "learned", "augmentations": 2, "encoder_batch": batch}
    with closing(kind(context(world, tmp_path, precision="float32", **settings))) as problem:
        gradient(problem, start(), 3)
        logits, found = problem.targets.logits, problem.targets._gradient
        assert logits is not None
        assert found is not None
        views = problem.views(3)
        with torch.no_grad():
            Z = world.encoder(views.of(start(), range(10)))
        (expected,) = torch.autograd.grad(problem.loss(Z, 3), logits)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        direction = expected / expected.norm()
        before = problem.loss(Z, 3).item()
        with torch.no_grad():
            logits -= 0.5 * direction
        assert problem.loss(Z, 3).item() < before


def test_labels_that_are_fixed_leave_the_gradient_of_the_images_alone(world: World, tmp_path: Path) -> None:
    with closing(ClosedFormProbe(context(world, tmp_path, augmentations=1))) as hard:
        expected = gradient(hard, start(), 2)
    with closing(ClosedFormProbe(context(world, tmp_path, augmentations=1, labels="learned"))) as learned:
        learned.targets = Targets(one_hot(learned.labels, 10).float(), False)
        found = gradient(learned, start(), 2)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("method", ["clp", "lgm"])
def test_a_stopped_run_ends_in_the_labels_of_an_untouched_one(world: World, tmp_path: Path, method: str) -> None:
    settings = DistillSettings(**QUICK | {"labels": "learned", "label_learning_rate": 0.1, "keep": "last"})

    def follow(root: Path, stop_at: int | None = None) -> DistilledSet:
        def stop(snapshot: Snapshot) -> None:
            if snapshot.step == stop_at:
                raise KeyboardInterrupt

        return distill(
            variant(method, settings), **world.inputs(root, **SAVES), watch=Watch(snapshots=[5], on_snapshot=stop)
        )

    untouched = follow(tmp_path / "untouched")
    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "stopped", stop_at=5)  # the checkpoint is of step 3
    follow(tmp_path / "stopped")
    assert sha256_tree(tmp_path / "stopped" / "set") == sha256_tree(tmp_path / "untouched" / "set")
    soft = untouched.soft_labels
    assert soft is not None
    begun = Targets(one_hot(untouched.labels, 10).float(), True).probabilities.detach()
    assert float((soft - begun).abs().max()) > 1e-3
    torch.testing.assert_close(soft.sum(1), torch.ones(10))


# -- from the full-data probe ------------------------------------------------------------------------------------------


def test_probe_labels_are_the_mean_predictions_of_the_probe(world: World, tmp_path: Path) -> None:
    store = FeatureStore.open(world.layout.features(world.encoder.name, "train"))
    kernels = Kernels.load(world.layout.kernels(world.encoder.name))
    Z = store.features().float()
    found = mean_predictions(kernels.weights, kernels.bias, Z, store.labels, 0.2)
    for label, row in enumerate(found):
        logits = (Z[store.labels == label] @ kernels.weights + kernels.bias) / 0.2
        torch.testing.assert_close(row, logits.softmax(1).mean(0))
    made = run(world, tmp_path, "centroid", labels="probe", temperature=0.2)
    assert made.soft_labels is not None
    torch.testing.assert_close(made.soft_labels, found)


# -- kept and used -----------------------------------------------------------------------------------------------------


@pytest.fixture
def soft() -> DistilledSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    draw, told = torch.tensor([0, 1] * 3), torch.rand(6, 3, generator=generator).softmax(1)
    return DistilledSet(images, labels, ["a", "b", "c"], {"method": "clp"}, draw=draw, soft_labels=told)


def test_soft_labels_come_back_and_open_elsewhere(soft: DistilledSet, tmp_path: Path) -> None:
    back = DistilledSet.load(soft.save(tmp_path / "set"))
    assert soft.soft_labels is not None
    assert back.soft_labels is not None
    assert torch.equal(back.soft_labels, soft.soft_labels)
    assert torch.equal(torch.cat([draw.targets for draw in back.draws]), soft.soft_labels[[0, 2, 4, 1, 3, 5]])
    file = str(tmp_path / "set" / "data.parquet")
    opened = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(np.array(opened["soft_label"][:], dtype=np.float32), soft.soft_labels.numpy())


@pytest.mark.parametrize("wrong", [torch.ones(6, 3), torch.eye(3), torch.full((6, 3), torch.nan)])
def test_what_is_no_probability_is_refused(soft: DistilledSet, wrong: torch.Tensor) -> None:
    with pytest.raises(ArtifactError, match=r"soft labels must be \(6, 3\)"):
        DistilledSet(soft.images, soft.labels, soft.class_names, {}, soft_labels=wrong)


def test_exports_carry_soft_labels(soft: DistilledSet, tmp_path: Path) -> None:
    assert soft.soft_labels is not None
    source, told = soft.save(tmp_path / "set"), soft.soft_labels[soft.draw == 0]  # one draw is exported
    assert torch.equal(load_file(export(source, "safetensors", tmp_path / "s"))["soft_labels"], told)
    listed = json.loads((export(source, "folder", tmp_path / "f") / "soft_labels.json").read_text())
    assert all((tmp_path / "f" / name).is_file() for name in listed)
    assert torch.equal(torch.tensor(list(listed.values())), told)
    with tarfile.open(export(source, "webdataset", tmp_path / "w")) as tar:
        facts = [json.load(tar.extractfile(m)) for m in tar.getmembers() if m.name.endswith(".json")]  # type: ignore[arg-type]
    assert torch.equal(torch.tensor([fact["soft_label"] for fact in facts]), told)


@pytest.mark.parametrize("protocol", ["sgd", "closed_form"])
def test_a_classifier_is_trained_on_soft_labels(world: World, protocol: str) -> None:
    images = (torch.eye(3)[..., None, None] * 255).expand(3, 3, 64, 64).to(torch.uint8)  # red, green, blue
    turned = one_hot(torch.tensor([1, 2, 0]), 3).float()  # what the labels say is not what is trained on
    data = DistilledSet(images, torch.arange(3), ["a", "b", "c"], {"method": "clp"}, soft_labels=turned)
    still = AugmentSettings(flip=0.0, crop=False)
    quick = EvaluateSettings(epochs=300, learning_rate=1.0, augment=still)
    made = train_classifier(data, world.encoder, quick, protocol=protocol)
    assert made(encode(world.encoder, images)).argmax(1).tolist() == [1, 2, 0]
