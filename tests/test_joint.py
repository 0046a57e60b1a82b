"""Several encoders as one: the features, the loss and the score of its members, and the pipeline with it."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

import clpdd
from clpdd.cli.cost import encoder_pass, whole_pass
from clpdd.cli.dry_run import dry_run
from clpdd.cli.main import main
from clpdd.config.cache import CacheSettings
from clpdd.config.distill import DistillSettings
from clpdd.config.kernels import KernelSettings
from clpdd.config.loading import parse_settings
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.calling import encode
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.joint import JointEncoder
from clpdd.encoders.loading import load_encoder
from clpdd.errors import SettingsError
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.functional.parts import WHOLE, parts_of
from clpdd.functional.seeding import generator
from clpdd.methods.clp import ClosedFormProbe
from clpdd.methods.lgm import GradientMatch
from clpdd.methods.problem import FeatureProblem
from clpdd.methods.real import Neighbor
from clpdd.optimise.context import Context
from clpdd.probe.classifier import Classifier
from clpdd.probe.closed_form import fit_ridge
from clpdd.probe.scoring import score
from clpdd.stages.cache import cache_features, run_cache
from clpdd.stages.distill import run_distill
from clpdd.stages.evaluate import run_evaluate
from clpdd.stages.index import run_index
from clpdd.stages.kernels import compute_kernels, run_kernels
from clpdd.stages.project import Project, open_project
from clpdd.stages.report import run_report
from clpdd.storage.files import read_json
from clpdd.storage.layout import Layout
from tests.runs import run_in

from .conftest import World
from .contexts import open_context
from .pixels import gradient

SIZE = 32


def random_weights(path: Path, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(timm.create_model("clpdd_resnet14", num_classes=0).state_dict(), path)
    return path


def member(name: str, weights: Path | None = None, size: int = SIZE) -> Encoder:
    return load_encoder(name, model="clpdd_resnet14", weights=weights, image_size=size, device="cpu")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoder]:
    """The shipped encoder and one with random weights, at 32 pixels."""
    folder = tmp_path_factory.mktemp("weights")
    return {"one": member("one"), "two": member("two", random_weights(folder / "two.safetensors", 1))}


@pytest.fixture(scope="module")
def layout(world: World, members: dict[str, Encoder], tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Features and kernels of each member, and of both with the one or the other weighing next to nothing."""
    made = Layout(tmp_path_factory.mktemp("joint"))
    for name, weights in (("both", (1.0, 1.0)), ("first", (1.0, 1e-12)), ("second", (1e-12, 1.0))):
        cached(world, made, JointEncoder(name, members, dict(zip(members, weights, strict=True))))
    for encoder in members.values():
        cached(world, made, encoder)
    return made


def cached(world: World, layout: Layout, encoder: Encoder) -> None:
    stores = {split: layout.features(encoder.name, split) for split in ("train", "validation")}
    for split, target in stores.items():
        settings = CacheSettings(dtype="float32")
        cache_features(world.layout.index(split), encoder, settings, target, run_in(layout.work), progress=False)
    target = layout.kernels(encoder.name)
    compute_kernels(stores["train"], stores["validation"], KernelSettings(), target, run_in(layout.work))


def context(world: World, layout: Layout, encoder: Encoder, room: Path, **settings: Any) -> Context:
    return open_context(world.layout.index("train"), layout, encoder, room, DistillSettings(**settings))


def images(n: int = 10, size: int = SIZE) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=generator(0, "joint"))


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_are_the_members_side_by_side_each_at_its_own_size(
    members: dict[str, Encoder], tmp_path: Path
) -> None:
    small = member("small", random_weights(tmp_path / "small.safetensors", 2), size=24)
    joint = JointEncoder("both", {"small": small, "one": members["one"]}, {"small": 1.0, "one": 3.0})
    pixels = images(4)
    assert (joint.size, joint.dim) == (SIZE, small.dim + members["one"].dim)
    torch.testing.assert_close(joint(pixels), torch.cat([small(pixels), members["one"](pixels)], 1))
    described = joint.describe()["members"]
    assert [(m["name"], m["weight"], m["columns"], m["size"]) for m in described] == [
        ("small", 1.0, [0, small.dim], 24),
        ("one", 3.0, [small.dim, joint.dim], SIZE),
    ]
    assert [part.share for part in joint.parts] == [0.25, 0.75]
    picture = torch.randint(0, 256, (3, 90, 70), dtype=torch.uint8).permute(1, 2, 0).numpy()
    image = pytest.importorskip("PIL.Image").fromarray(picture)
    assert torch.equal(joint.transform(image), members["one"].transform(image))


def test_the_digest_follows_members_sizes_and_shares_and_no_names(members: dict[str, Encoder]) -> None:
    def digest(*weights: float, **loaded: Encoder) -> str:
        return JointEncoder("both", loaded, dict(zip(loaded, weights, strict=True))).digest

    one, two = members["one"], members["two"]
    base = digest(1.0, 1.0, one=one, two=two)
    assert digest(2.0, 2.0, a=one, b=two) == base
    others = [digest(1.0, 2.0, one=one, two=two), digest(1.0, 1.0, two=two, one=one)]
    others.append(digest(1.0, 1.0, one=member("one", size=24), two=two))
    assert len({base, *others}) == 4


def test_python_joins_encoders_by_object_or_name_and_refuses_what_cannot_be(members: dict[str, Encoder]) -> None:
    joint = clpdd.join_encoders({members["two"]: 1, "clpdd_resnet14": 3.0}, "pair", device="cpu")
    assert (joint.name, joint.size) == ("pair", 64)
    assert [m["name"] for m in joint.describe()["members"]] == ["two", "clpdd_resnet14"]
    for given, said in (
        ({members["one"]: 1.0}, "needs two members or more, it has 1"),
        ({members["one"]: 1.0, members["two"]: 0.0}, "the weight of 'two' in 'joint' is 0.0"),
        ({members["one"]: 1.0, members["two"]: float("inf")}, "above 0 and finite"),
        ({members["one"]: 1.0, member("one"): 1.0}, "two members of 'joint' are called 'one'"),
        ({members["one"]: 1.0, joint: 1.0}, "member 'pair' of 'joint' is a joint encoder itself"),
    ):
        with pytest.raises(SettingsError, match=said):
            clpdd.join_encoders(given)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "settings"),
    [
        (ClosedFormProbe, {"outer_batch": 50}),
        (ClosedFormProbe, {"outer_batch": 0, "objective": "cosine"}),
        (ClosedFormProbe, {"outer_batch": 0, "objective": "mse"}),
        (GradientMatch, {}),
    ],
)
@pytest.mark.parametrize("weights", [(1.0, 3.0), (1.0, 1e-12)])
def test_loss_gradient_and_score_are_the_weighted_means_of_the_members(
    world: World,
    layout: Layout,
    members: dict[str, Encoder],
    tmp_path: Path,
    problem: type[FeatureProblem],
    settings: dict[str, Any],
    weights: tuple[float, float],
) -> None:
    joint = JointEncoder("both", members, dict(zip(members, weights, strict=True)))
    settings = {"precision": "float32", "encoder_batch": 512} | settings

    def run(encoder: Encoder) -> tuple[float, torch.Tensor, float]:
        with closing(problem(context(world, layout, encoder, tmp_path, **settings))) as made:
            return *gradient(made, images(), 3), made.validate((images() * 255).byte())

    alone = [run(encoder) for encoder in members.values()]
    loss, found, score = run(joint)
    shares = [weight / sum(weights) for weight in weights]
    assert loss == pytest.approx(sum(s * a[0] for s, a in zip(shares, alone, strict=True)), rel=1e-4)
    expected = torch.stack([s * a[1] for s, a in zip(shares, alone, strict=True)]).sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3 * expected.abs().max().item())
    assert score == pytest.approx(sum(s * a[2] for s, a in zip(shares, alone, strict=True)), abs=1.7)  # of 60 images
    assert not torch.allclose(alone[0][1], alone[1][1], rtol=0.5)  # there is something to average


def test_two_passes_equal_one(world: World, layout: Layout, members: dict[str, Encoder], tmp_path: Path) -> None:
    joint = JointEncoder("both", members, {"one": 1.0, "two": 1.0})
    one, two = (
        ClosedFormProbe(context(world, layout, joint, tmp_path, augmentations=3, encoder_batch=batch))
        for batch in (512, 7)
    )
    with closing(one), closing(two):
        loss, found = gradient(one, images(), 5)
        again, chunked = gradient(two, images(), 5)
    assert again == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(chunked, found, rtol=1e-3, atol=1e-4 * found.abs().max().item())


# -- one measure over all columns --------------------------------------------------------------------------------------


def test_central_images_and_the_full_probe_weigh_members_by_their_shares(layout: Layout) -> None:
    both = Kernels.load(layout.kernels("both"))
    for joint, name in (("first", "one"), ("second", "two")):
        found, alone = (Kernels.load(layout.kernels(which)) for which in (joint, name))
        assert torch.equal(found.nearest, alone.nearest)
        assert not torch.equal(both.nearest, alone.nearest)
        scores = [[line["validation_top1"] for line in kernels.ridge_scores] for kernels in (found, alone)]
        assert scores[0] == pytest.approx(scores[1], abs=1.7)


@pytest.mark.parametrize("rows", [8, 40])  # fewer and more than features: both forms of the solver
def test_the_closed_form_probe_does_not_see_the_scale_of_a_member(rows: int) -> None:
    Z = torch.randn(1, rows, 12, generator=generator(0, "scale"))
    labels = torch.arange(rows)[None] % 3
    loud = torch.ones(12)
    loud[5:] = 1000
    parts = parts_of([(5, 1.0), (7, 1.0)])
    fits = [fit_ridge(Z * scale, labels, 3, torch.zeros(12), 0.5, parts) for scale in (torch.ones(12), loud)]
    torch.testing.assert_close(fits[0].weights, loud[:, None] * fits[1].weights, rtol=1e-3, atol=1e-5)
    unaided = [fit_ridge(Z * scale, labels, 3, torch.zeros(12), 0.5).weights for scale in (torch.ones(12), loud)]
    assert not torch.allclose(unaided[0], loud[:, None] * unaided[1], rtol=1e-1)


def test_neighbours_are_near_in_the_mean_of_the_members_cosines(
    world: World, layout: Layout, members: dict[str, Encoder], tmp_path: Path
) -> None:
    joint = JointEncoder("both", members, {"one": 1.0, "two": 1.0})
    made = context(world, layout, joint, tmp_path)
    source = DistilledSet((images() * 255).byte(), made.labels, made.index.class_names, {})
    found = Neighbor()(replace(made, source=source)).info["sources"]
    similarity = torch.zeros(len(source), len(made.index))
    for name, encoder in members.items():
        real = FeatureStore.open(layout.features(name, "train")).features()
        seen = torch.nn.functional.cosine_similarity(encode(encoder, source.images)[:, None], real[None], dim=2)
        similarity += seen / 2
    similarity[made.labels[:, None] != torch.tensor(made.index.labels)] = -torch.inf
    assert found == [made.index.ids[row] for row in similarity.argmax(1).tolist()]


def test_a_single_encoder_is_one_part_of_all_columns(members: dict[str, Encoder]) -> None:
    assert members["one"].parts is WHOLE
    assert "members" not in members["one"].describe()


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"both": {"members": {"a": 1.0}}}, "encoder_options.both.members: "),
        ({"both": {"members": {"a": 1.0, "b": 0}}}, "encoder_options.both.members.b: input should be greater than 0"),
        ({"both": {"members": {"a": 1.0, "b": "much"}}}, "encoder_options.both.members.b: input should be a valid"),
        ({"both": {"members": ["a", "b"]}}, "encoder_options.both.members: input should be a valid dictionary"),
        ({"both": {"members": {"a": 1, "b": 1}, "model": "x"}}, "model is for a single encoder"),
        ({"both": {"members": {"a": 1, "b": 1}, "features": "both"}}, "features is for a single encoder"),
        ({"both": {"members": {"a": 1, "both": 1}}}, "members names 'both', a joint encoder as well"),
        ({"both": {"members": {"mine": 1, "b": 1}}, "mien": {"model": "x"}}, "did you mean mine?"),
        ({"both": {"member": {"mine": 1, "b": 1}}}, "encoder_options.both.member: unknown key; did you mean members?"),
    ],
)
def test_refusals_name_the_entry(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings({"encoders": ["both"], "encoder_options": options})
    assert expected in str(refused.value)


def test_an_unknown_member_is_refused_with_near_names_before_work(tmp_path: Path) -> None:
    options = {"mine": {"model": "resnet10t"}, "both": {"members": {"min": 1.0, "clpdd_resnet14": 1.0}}}
    settings = parse_settings({"encoders": ["mine", "both"], "encoder_options": options})
    with pytest.raises(SettingsError, match=r"encoder_options\.both\.members: timm has no model named 'min'.*mine"):
        run_index(Project(settings, Layout(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


def test_members_need_their_weights_where_a_short_name_says_so() -> None:
    settings = parse_settings(
        {"encoders": ["both"], "encoder_options": {"both": {"members": {"mocov3": 1.0, "clip": 1.0}}}}
    )
    with pytest.raises(SettingsError, match=r"encoder_options\.mocov3\.weights is needed"):
        settings.encoder_arguments("both")


def test_a_joint_encoder_costs_what_its_members_do_and_passes_a_dry_run(tmp_path: Path) -> None:
    settings = parse_settings(
        {
            "encoders": ["both"],
            "methods": ["clp"],
            "encoder_options": {
                "both": {"members": {"clpdd_resnet14": 1.0, "other": 2.0}},
                "other": {"model": "resnet10t", "weights": "nowhere.safetensors", "image_size": 32},
            },
        }
    )
    passes = [encoder_pass("clpdd_resnet14"), encoder_pass("resnet10t", 32)]
    found = whole_pass(settings, "both")
    assert found.macs == pytest.approx(sum(one.macs for one in passes))
    assert (found.dim, found.size) == (sum(one.dim for one in passes), 64)
    ((walk,), _) = dry_run(settings, tmp_path, tell=lambda _: None)
    assert (walk.size, walk.dim, walk.made["clp"]) == (64, found.dim, (2, 3, 64, 64))


# -- the pipeline ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings in which every stage has run; a member that `encoders` does not list is among them."""
    folder = tmp_path_factory.mktemp("project")
    weights = random_weights(folder / "other.safetensors", 3)
    settings = {
        "dataset": {"max_per_class": {"train": 6, "validation": 3, "test": 3}},
        "encoders": ["clpdd_resnet14", "both"],
        "encoder_options": {
            "clpdd_resnet14": {"image_size": 32},
            "other": {"model": "clpdd_resnet14", "weights": str(weights), "image_size": 24},
            "both": {"members": {"clpdd_resnet14": 1.0, "other": 0.5}},
        },
        "runtime": {"workers": 0},
        "methods": ["clp", "centroid", "full"],
        "distill": {"steps": 3, "augmentations": 1, "outer_batch": 16},
        "evaluate": {"seeds": 2, "views": 2, "epochs": 5},
    }
    (folder / "params.yaml").write_text(json.dumps(settings))  # JSON is YAML
    made = open_project(folder / "params.yaml", folder / "data")
    run_index(made)
    for encoder in made.settings.encoders:
        run_cache(made, encoder)
        run_kernels(made, encoder)
        for method in made.settings.methods:
            run_distill(made, encoder, method)
    run_evaluate(made)
    run_report(made)
    return folder


def test_the_pipeline_distils_and_judges_with_a_joint_encoder(project: Path) -> None:
    layout = Layout(project / "data")
    rows = pq.read_table(layout.results / "results.parquet").to_pylist()
    pairs = {(row["distil_encoder"], row["eval_encoder"]) for row in rows if row["method"] == "clp"}
    assert pairs == {(a, b) for a in ("clpdd_resnet14", "both") for b in ("clpdd_resnet14", "both")}
    made = DistilledSet.load(layout.distilled("both", "clp"))
    assert made.images.shape == (10, 3, 32, 32)
    assert [m["name"] for m in made.info["encoder"]["members"]] == ["clpdd_resnet14", "other"]
    assert "both" in (layout.results / "report.html").read_text()


def test_the_closed_form_protocol_brings_the_members_to_one_scale(project: Path) -> None:
    made = open_project(project / "params.yaml", project / "data")
    encoder, layout = made.encoder("both"), made.layout
    data = DistilledSet.load(layout.distilled("both", "clp"))
    store, mean = FeatureStore.open(layout.features("both", "test")), Kernels.load(layout.kernels("both")).mean
    Z, ridge = encode(encoder, data.images)[None], made.settings.evaluate.ridge
    top1 = [
        score(fit_ridge(Z, data.labels[None], 10, mean, ridge, parts), [(store.features(), store.labels)]).top1[0]
        for parts in (encoder.parts, WHOLE)
    ]
    assert top1[0] != top1[1]
    for row in pq.read_table(layout.results / "results.parquet").to_pylist():
        if (row["distil_encoder"], row["eval_encoder"], row["method"], row["views"]) == (
            "both",
            "both",
            "clp",
            "clean",
        ):
            assert row["top1"] == pytest.approx(top1[0])


def test_another_process_is_handed_the_same_encoder(project: Path) -> None:
    made = open_project(project / "params.yaml", project / "data")
    arguments = json.loads(json.dumps(made.encoder_arguments("both")))
    known = read_json(made.layout.kernels("both") / "kernels.json")["encoder"]
    assert load_encoder(**arguments).describe() == known


def test_a_classifier_over_joint_features_is_trained_and_used(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, file = Layout(project / "data"), tmp_path / "probe.safetensors"
    common = ["--params", str(project / "params.yaml"), "--data", str(layout.root)]
    own = [*common, "probe", str(layout.distilled("clpdd_resnet14", "clp")), "--encoder", "both", "--out", str(file)]
    assert main([*own, "--protocol", "closed_form"]) == 0
    assert Classifier.load(file).weight.shape[1] == 2 * 768
    assert main([*common, "predict", str(file), str(layout.distilled("both", "clp") / "images")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert main([*own, "--image-size", "64"]) == 2
    assert "--image-size is for a single encoder, and both joins several" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # far from the settings that say what `both` is
    assert main(["probe", str(layout.distilled("both", "clp")), "--out", "far.safetensors"]) == 2
    assert "distilled with both, which joins clpdd_resnet14, " in capsys.readouterr().err
