"""The protocols beside sgd and closed_form: what they are run on, and that they do what they say."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import clpdd.evaluation.subject
from clpdd.config.evaluate import EvaluateSettings
from clpdd.config.loading import parse_settings
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.calling import encode
from clpdd.errors import Preempted, SettingsError, SingularError
from clpdd.evaluation.inputs import EvaluationData, open_bench
from clpdd.evaluation.protocols import inherit, kd, knn, logistic, sgd
from clpdd.evaluation.subject import Bench, Subject
from clpdd.functional.parts import WHOLE, parts_of
from clpdd.probe.linear import Judged, Probes
from clpdd.probe.logistic import SMALL_GRID, fit_logistic
from clpdd.probe.scoring import score
from clpdd.probe.sgd import Teacher
from clpdd.probe.views import FreshViews, Stream, ViewBank
from clpdd.storage.files import read_json

from .conftest import SETTINGS, SPLITS, World, rows_of

ALL = ["sgd", "logistic", "knn", "inherit", "kd"]


@pytest.fixture(scope="module")
def benches(world: World) -> dict[str, Bench]:
    found = {}
    for name, encoder in world.encoders.items():
        stores = {split: world.root / name / f"{split}.zarr" for split in SPLITS}
        kernels = world.root / name / "kernels"
        found[name] = open_bench(name, EvaluationData(encoder=encoder, kernels=kernels, **stores))
    return found


def nothing() -> None:
    """What long work calls, where nothing is to stop it."""


def subject(world: World, bench: Bench, teacher: Bench | None = None, per_class: int = 1) -> Subject:
    """Real training images: the first of every class, or several."""
    train = Index.open(world.root / "index" / "train.parquet")
    labels = torch.tensor(train.labels)
    rows = torch.cat([(labels == c).nonzero().flatten()[:per_class] for c in range(10)]).tolist()
    images = torch.stack([bench.encoder.transform(train.image(row)) for row in rows])
    data = DistilledSet(images, labels[rows], train.class_names, {"method": "random"})
    return Subject(data, bench, SETTINGS, 0, nothing, teacher)


def top1(probes: Judged, bench: Bench) -> list[float]:
    return score(probes, bench.judge.blocks(4096)).top1


@pytest.fixture(scope="module")
def results(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = EvaluateSettings.model_validate(SETTINGS.model_dump() | {"protocols": ALL})
    sets = {key: world.distilled[key] for key in [("one", "clp"), ("one", "full")]}
    return world.evaluate(tmp_path_factory.mktemp("all"), settings, distilled=sets)


def test_protocols_see_what_they_are_for(results: Path) -> None:
    rows = [r for r in rows_of(results) if r["method"] == "clp"]
    own = [(r["protocol"], r["views"], r["seed"]) for r in rows if r["eval_encoder"] == "one"]
    at_home = [("sgd", "bank-4", 0), ("sgd", "bank-4", 1), ("logistic", "clean", 0)]
    at_home += [("logistic", "bank-4", 0), ("logistic", "bank-4", 1), ("knn", "clean", 0)]
    assert own == at_home
    abroad = [("inherit", "clean", 0), ("inherit", "bank-4", 0), ("inherit", "bank-4", 1)]
    abroad += [("kd", "bank-4", 0), ("kd", "bank-4", 1)]
    assert [(r["protocol"], r["views"], r["seed"]) for r in rows if r["eval_encoder"] == "two"] == at_home + abroad


def test_every_row_and_metric_has_its_mean_per_class_accuracy(world: World, results: Path) -> None:
    rows, metrics = rows_of(results), read_json(results / "metrics.json")
    assert all(0 <= r["mean_per_class"] <= 100 for r in rows)
    for row in rows:  # the classes of the test images are even, so both accuracies are the same
        assert row["mean_per_class"] == pytest.approx(row["top1"])
    for by_method in metrics.values():
        assert all("mean_per_class" in leaf for leaves in by_method.values() for leaf in leaves.values())
    bound = metrics["two"]["full"]["logistic-clean"]["top1"] if "two" in metrics else None
    found = metrics["one -> two"]["clp"]["inherit-clean"]
    full = next(
        r["top1"] for r in rows if (r["method"], r["eval_encoder"], r["protocol"]) == ("full", "two", "logistic")
    )
    assert bound in (None, round(full, 4))
    assert found["share_of_full"] == pytest.approx(100 * found["top1"] / full, abs=1e-3)


def test_notes_say_what_was_chosen_on_validation(results: Path) -> None:
    details = read_json(results / "details.json")["rows"]
    notes = {(r["eval_encoder"], r["protocol"], r["views"]): r["notes"] for r in details if r["method"] == "clp"}
    assert notes["one", "knn", "clean"] == {"k": [1]}
    assert len(notes["one", "logistic", "bank-4"]["l2"]) == 2
    assert set(notes["one", "logistic", "bank-4"]["l2"]) <= set(SMALL_GRID)
    assert set(notes["two", "inherit", "clean"]["ridge"]) <= set(inherit.GRID)


def test_neighbours_are_as_many_as_do_best_on_validation(world: World, benches: dict[str, Bench]) -> None:
    bench = benches["one"]
    several = subject(world, bench, per_class=3)
    chosen, _, notes = knn.train(several, "clean")
    judged = replace(bench, judge=bench.validation)
    Z = encode(bench.encoder, several.images[0], 64)[None]
    each = {k: top1(knn.Neighbours(Z, several.targets, 10, [k]), judged)[0] for k in knn.GRID}
    assert notes["k"] == [max(each, key=lambda k: (each[k], -k))]
    assert top1(chosen, judged) == [max(each.values())]


def test_neighbours_of_soft_labels_are_of_their_likeliest_class(world: World, benches: dict[str, Bench]) -> None:
    hard, soft = (subject(world, benches["one"], per_class=2) for _ in range(2))
    soft.targets = 0.4 / 10 + 0.6 * torch.nn.functional.one_hot(hard.targets, 10).float()
    assert top1(knn.train(soft, "clean")[0], benches["one"]) == top1(knn.train(hard, "clean")[0], benches["one"])


def test_logistic_regression_of_a_set_beats_chance_and_takes_soft_labels(
    world: World, benches: dict[str, Bench]
) -> None:
    few = subject(world, benches["one"], per_class=2)
    hard, streams, _ = logistic.train(few, "clean")
    few.targets = 0.01 + 0.9 * torch.nn.functional.one_hot(few.targets, 10).float()
    soft, _, _ = logistic.train(few, "clean")
    assert hard.shape == soft.shape == (len(streams), 10) == (1, 10)
    assert min(*top1(hard, benches["one"]), *top1(soft, benches["one"])) > 15


def explicit(own: Tensor, theirs: Tensor, own_mean: Tensor, theirs_mean: Tensor, ridge: float) -> Tensor:
    """The map ``T (d_B, d_A)`` by the normal equations, float64."""
    X, Y = (own - own_mean).double(), (theirs - theirs_mean).double()
    energy = X.square().sum(1).mean()
    T: Tensor = torch.linalg.solve(X.T @ X + ridge * energy * torch.eye(X.shape[1], dtype=torch.float64), X.T @ Y)
    return T


def test_an_inherited_classifier_is_the_teachers_behind_a_ridge_map(world: World, benches: dict[str, Bench]) -> None:
    bench, teacher = benches["two"], benches["one"]
    abroad = subject(world, bench, teacher)
    probes, _, notes = inherit.train(abroad, "clean")
    own, theirs = (encode(b.encoder, abroad.images[0], 64) for b in (bench, teacher))
    T = explicit(own, theirs, bench.kernels.mean, teacher.kernels.mean, notes["ridge"][0])
    Z = bench.judge.features()
    mapped = (Z - bench.kernels.mean).double() @ T + teacher.kernels.mean.double()
    classifier = teacher.classifier(nothing)
    wanted = mapped @ classifier.weights[0].double() + classifier.bias[0].double()
    assert isinstance(probes, Probes)
    found = probes.scorer()(Z)[:, 0].double()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_a_teacher_of_the_same_features_is_inherited_as_it_is(world: World, benches: dict[str, Bench]) -> None:
    """With as many images as features, and no strength to speak of, the map is the identity on what they span."""
    bench = benches["one"]
    all_images = subject(world, bench, bench, per_class=12)
    probes, _, _ = inherit.train(all_images, "bank-4")
    assert min(top1(probes, bench)) > top1(bench.classifier(nothing), bench)[0] - 5


def test_many_views_of_few_images_are_inherited_from_at_every_ridge(world: World, benches: dict[str, Bench]) -> None:
    """More rows than features, all of them nearly in the space of ten images."""
    abroad = subject(world, benches["two"], benches["one"])
    abroad.settings = SETTINGS.model_copy(update={"views": 100, "seeds": 1})
    abroad.streams = abroad.streams[:1]
    assert benches["two"].encoder.dim < 10 * 100
    probes, _, notes = inherit.train(abroad, "bank-100")
    assert notes["ridge"][0] in inherit.GRID
    own, theirs = (
        abroad.views(abroad.streams, range(100), b.encoder)[0].flatten(0, 1) for b in (benches["two"], benches["one"])
    )
    T = explicit(own, theirs, benches["two"].kernels.mean, benches["one"].kernels.mean, notes["ridge"][0])
    assert isinstance(probes, Probes)
    wanted = T @ benches["one"].classifier(nothing).weights[0].double()
    torch.testing.assert_close(probes.weights[0].double(), wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_images_without_any_feature_of_their_own_say_what_to_do(world: World, benches: dict[str, Bench]) -> None:
    abroad = subject(world, benches["two"], benches["one"])
    abroad.images = abroad.images[:, :1].expand_as(abroad.images)
    same = encode(benches["two"].encoder, abroad.images[0], 64)
    kernels = replace(benches["two"].kernels, mean=same[0])
    abroad.bench = replace(benches["two"], kernels=kernels)
    with pytest.raises(SingularError, match=r"or take inherit out of evaluate\.protocols"):
        inherit.train(abroad, "clean")


def test_what_is_taught_are_the_teachers_words_on_the_same_views(world: World, benches: dict[str, Bench]) -> None:
    bench, teacher = benches["two"], benches["one"]
    abroad = subject(world, bench, teacher)
    seen = abroad.views(abroad.streams[:1], range(2), teacher.encoder)
    logits = teacher.classifier(nothing).scorer()(seen.flatten(0, 2))[:, 0]
    for number in range(2):
        views = FreshViews(lambda epoch: seen[:, epoch])
        taught = kd._taught(teacher.classifier(nothing), bench.encoder.device, views, number, None)
        torch.testing.assert_close(taught[0], (logits / 4).softmax(-1).view(2, 10, 10)[number])
    again = subject(world, teacher)  # the views of a subject of the teacher's own
    torch.testing.assert_close(again.views(again.streams[:1], range(2)), seen)
    abroad.settings = SETTINGS.model_copy(update={"epochs": 100, "learning_rate": 1.0})

    def divergence(probes: Judged) -> float:
        """From what the teacher says of a view that none was trained on."""
        own = probes.scorer()(abroad.fresh(abroad.streams[:1], 200)[0])[:, 0]
        wanted = (
            teacher.classifier(nothing).scorer()(abroad.fresh(abroad.streams[:1], 200, teacher.encoder)[0])[:, 0] / 4
        ).softmax(-1)
        return float(torch.nn.functional.kl_div((own / 4).log_softmax(1), wanted, reduction="batchmean"))

    untaught = divergence(sgd.train(abroad, "bank-4")[0])
    assert divergence(kd.train(abroad, "bank-4")[0]) < untaught
    assert divergence(kd.train(abroad, "fresh")[0]) < untaught


def test_a_teacher_asked_batch_by_batch_teaches_what_all_its_words_at_once_do(
    world: World, benches: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, teacher = benches["two"], benches["one"]
    abroad = subject(world, bench, teacher, per_class=11)  # 110 images: a batch of 100, and one of 10
    seen = abroad.views(abroad.streams, range(4), teacher.encoder)
    logits = teacher.classifier(nothing).scorer()(seen.flatten(0, 2))[:, 0].view(*seen.shape[:3], 10)
    said, fit = ViewBank((logits / 4).softmax(-1), abroad.streams), kd.fit_sgd
    held: list[torch.Size] = []

    def at_once(*given: Any, teacher: Teacher, **options: Any) -> Probes:
        return fit(*given, teacher=Teacher(said, teacher.temperature), **options)

    def bank(Z: Tensor, streams: list[Stream]) -> ViewBank:
        held.append(Z.shape)
        return ViewBank(Z, streams)

    monkeypatch.setattr(kd, "ViewBank", bank)
    found = kd.train(abroad, "bank-4")[0]
    assert held == [(2, 4, 110, bench.encoder.dim), (2, 4, 110, teacher.encoder.dim)]  # features alone
    monkeypatch.setattr(kd, "fit_sgd", at_once)
    expected = kd.train(abroad, "bank-4")[0]
    assert isinstance(found, Probes)
    assert isinstance(expected, Probes)
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-4, atol=1e-5)


def test_a_group_of_probes_has_room_for_the_teachers_features_too(
    world: World, benches: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, teacher = benches["two"], benches["one"]
    own, abroad = subject(world, bench), subject(world, bench, teacher)
    bank, layers = 4 * 4 * 10 * bench.encoder.dim, 4 * 4 * 10 * bench.encoder.dim  # 4 views of 10 images; 4 x (C, d)
    monkeypatch.setattr(clpdd.evaluation.subject, "_GROUP_BYTES", 2 * (bank + layers))
    assert [len(group) for group in own.groups()] == [2]
    assert [len(group) for group in abroad.groups()] == [1, 1]
    monkeypatch.setattr(clpdd.evaluation.subject, "_GROUP_BYTES", 2 * (2 * bank + layers))
    assert [len(group) for group in abroad.groups()] == [2]


def test_features_are_kept_in_float16_by_the_width_of_the_encoder_they_are_of(
    world: World, benches: dict[str, Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    abroad = subject(world, benches["two"], benches["one"])
    wide = copy(benches["one"].encoder)
    wide.dim = 2 * wide.dim
    monkeypatch.setattr(clpdd.evaluation.subject, "_GROUP_BYTES", 4 * 4 * 10 * benches["two"].encoder.dim)
    assert abroad._kept_as(benches["two"].encoder) == torch.float32
    assert abroad._kept_as(wide) == torch.float16


@pytest.mark.parametrize("protocol", [inherit, kd])
def test_the_fit_of_the_teachers_classifier_can_be_stopped_and_is_done_once(
    world: World, benches: dict[str, Bench], protocol: ModuleType
) -> None:
    teacher = replace(benches["one"])  # which nobody has asked for its classifier
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Preempted("stopped")

    abroad = subject(world, benches["two"], teacher)
    abroad.tick = stop
    with pytest.raises(Preempted):
        protocol.train(abroad, "bank-4")
    assert not teacher._fitted
    assert teacher.classifier(nothing) is teacher.classifier(stop)
    assert len(calls) == 3


def test_protocols_for_other_encoders_are_refused_where_there_is_no_other() -> None:
    with pytest.raises(SettingsError, match=r"holds inherit, for encoders other than the one .* lists one"):
        parse_settings({"evaluate": {"protocols": ["sgd", "inherit"]}})
    both = {"encoders": ["clpdd_resnet14", "resnet18"]}
    with pytest.raises(SettingsError, match=r"holds inherit, kd alone.*add one for that one too, e\.g\. sgd"):
        parse_settings(both | {"evaluate": {"protocols": ["inherit", "kd"]}})
    assert parse_settings(both | {"evaluate": {"protocols": ["inherit", "sgd"]}}).evaluate.protocols[0] == "inherit"


def test_logistic_probes_of_a_set_do_not_hang_on_the_axes_of_the_features() -> None:
    draw = torch.Generator().manual_seed(3)
    real = torch.randn(400, 12, generator=draw) * torch.logspace(-3, 1, 12) + 2  # columns that hardly vary, and others
    labels = torch.arange(400) % 4
    real[:, 4:8] += 2 * torch.eye(4)[labels]
    few, targets = real[:8] + 0.5 * torch.randn(8, 12, generator=draw), labels[:8]  # a set varies in all of them
    turned, _ = torch.linalg.qr(torch.randn(12, 12, generator=draw))
    logits = []
    for turn in (torch.eye(12), turned):
        variances, mean = torch.var_mean(real @ turn, 0, correction=0)
        probes, _ = fit_logistic(
            (few @ turn, targets),
            (real @ turn, labels),
            4,
            grid=[0.1],
            standard=(mean, logistic.spread(variances, WHOLE)),
        )
        logits.append(probes.scorer()(real @ turn)[0])
    assert (logits[1] - logits[0]).norm() <= 1e-2 * logits[0].norm()


def test_each_member_of_a_joint_encoder_has_its_own_spread() -> None:
    variances = torch.tensor([1.0, 3.0, 100.0, 300.0, -1e-9])
    found = logistic.spread(variances, parts_of([(2, 1.0), (3, 5.0)]))
    expected = torch.tensor([2.0, 2.0, 400 / 3, 400 / 3, 400 / 3]).sqrt()
    torch.testing.assert_close(found, expected)
