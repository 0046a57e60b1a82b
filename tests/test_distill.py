"""The distillation stage: resumed runs end in the same bytes, no test image is seen, errors keep the state."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from clpdd.catalogue.methods import METHODS
from clpdd.config.augment import AugmentSettings
from clpdd.config.distill import DistillSettings
from clpdd.config.variants import MethodVariant
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.calling import encode
from clpdd.errors import ArtifactError, BusyError, NumericalError, SettingsError
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.methods import problem
from clpdd.optimise.context import Snapshot, Watch
from clpdd.optimise.images import ImageState
from clpdd.optimise.real_features import RealFeatures
from clpdd.stages.distill import distill
from clpdd.storage.files import sha256_tree
from tests.runs import run_in, variant

from .conftest import World

QUICK: dict[str, Any] = {
    "steps": 12,
    "augmentations": 1,
    "outer_batch": 32,
    "extend_every": 2,
    "validate_every": 4,
    "preview_every": 4,
}
SAVES = {"checkpoint_every_steps": 3}


def run(world: World, root: Path, method: str = "clp", **settings: Any) -> DistilledSet:
    return distill(variant(method, DistillSettings(**QUICK | settings)), **world.inputs(root, **SAVES))


def in_a_process(world: World, root: Path, hold_at: int = 0, **settings: Any) -> subprocess.Popen[str]:
    """The same run in a process of its own, to be killed; at the validation of step ``hold_at`` it waits for that."""
    name = world.encoder.name
    script = textwrap.dedent(f"""
        import json, sys
        from pathlib import Path
        from clpdd.cli.main import _stop
        import signal
        signal.signal(signal.SIGTERM, _stop)
        from clpdd.config.distill import DistillSettings
        from clpdd.config.runtime import RuntimeSettings
        from clpdd.config.settings import Settings
        from clpdd.config.variants import MethodVariant
        from clpdd.optimise.context import Watch
        from clpdd.stages.distill import distill
        from clpdd.stages.project import Project, Run
        from clpdd.encoders.loading import load_encoder
        from clpdd.errors import ClpddError
        from clpdd.storage.layout import Layout
        layout, root = Layout(Path({str(world.layout.root)!r})), Path({str(root)!r})
        def say(step, readings):
            print(step, flush=True)
            if step == {hold_at}:
                signal.pause()
        try:
            distill(MethodVariant("clp", "clp", DistillSettings(**json.loads({json.dumps(QUICK | settings)!r}))),
                    Project(Settings(), layout).training({name!r}), load_encoder({name!r}, device="cpu"),
                    root / "set", run=Run(work=root / "work", runtime=RuntimeSettings(**{SAVES!r})),
                    watch=Watch(on_progress=say))
        except ClpddError as error:
            print(error, file=sys.stderr)
            sys.exit(error.exit_code)
    """)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("initialisation", ["centroid", "noise"])
def test_a_killed_run_ends_in_the_bytes_of_an_untouched_one(world: World, tmp_path: Path, initialisation: str) -> None:
    settings: dict[str, Any] = {"steps": 40, "initialisation": initialisation, "extend_every": 5}
    with in_a_process(world, tmp_path / "untouched", **settings) as process:
        assert process.wait() == 0
    kills = 0
    for attempt in range(6):
        hold_at = (4, 20)[attempt] if attempt < 2 else 0
        process = in_a_process(world, tmp_path / "killed", hold_at, **settings)
        assert process.stdout is not None
        if hold_at:  # die some steps after a checkpoint
            while int(process.stdout.readline()) != hold_at:
                pass
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        elif process.wait() == 0:
            break
    assert kills == 2
    assert sha256_tree(tmp_path / "killed" / "set") == sha256_tree(tmp_path / "untouched" / "set")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_warned_run_saves_leaves_with_75_and_goes_on(world: World, tmp_path: Path, number: signal.Signals) -> None:
    process = in_a_process(world, tmp_path, steps=2000)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    assert process.wait(120) == 75
    assert process.stderr is not None
    said = process.stderr.read()
    assert "saved" in said
    assert number.name in said
    stopped_at = int(said.split("after step ")[1].split()[0])
    (saved,) = (tmp_path / "work").glob(f"distill/*/*/checkpoints/step-{stopped_at:09d}.json")
    assert json.loads(saved.read_text())["step"] == stopped_at
    process = in_a_process(world, tmp_path, steps=2000)
    assert process.stdout is not None
    history = [int(process.stdout.readline()) for _ in range(stopped_at // 4 + 1)]
    process.kill()
    process.wait()
    assert history == list(range(4, stopped_at + 5, 4))  # the restored history, then new steps without a gap


def test_a_damaged_checkpoint_costs_the_steps_to_the_one_before_and_nothing_else(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    untouched = run(world, tmp_path / "untouched", steps=24)
    process = in_a_process(world, tmp_path / "damaged", hold_at=12, steps=24)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.kill()
    process.wait()
    newest = sorted((tmp_path / "damaged" / "work").glob("distill/*/*/checkpoints/*.safetensors"))[-1]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    again = run(world, tmp_path / "damaged", steps=24)
    assert "falling back" in caplog.text
    assert torch.equal(again.images, untouched.images)
    assert sha256_tree(tmp_path / "damaged" / "set") == sha256_tree(tmp_path / "untouched" / "set")


@pytest.mark.parametrize("method", ["clp", "lgm"])
def test_the_batch_is_measured_by_what_features_and_images_leave(
    world: World, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would take memory that the encoder's passes were promised else."""
    order: list[str] = []

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def noted(*given: Any, **named: Any) -> Any:
            order.append(name)
            return original(*given, **named)

        monkeypatch.setattr(owner, name, noted)

    note(RealFeatures, "_load")
    note(ImageState, "reset")
    note(problem, "batch_that_fits")
    run(world, tmp_path, method, steps=2, initialisation="centroid", encoder_batch=None)
    assert order.count("batch_that_fits") == 1
    assert order.index("batch_that_fits") == len(order) - 1 > 1


def test_levels_have_their_memory_promised_before_they_are_there(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promised: list[int] = []
    planned = problem.FeatureProblem._planned

    def plan(self: Any) -> Any:
        promised.append(self.promised)
        return planned(self)

    monkeypatch.setattr(problem.FeatureProblem, "_planned", plan)
    for start in ("centroid", "noise"):
        run(world, tmp_path / start, steps=2, initialisation=start, encoder_batch=None)
    levels = [1, 2, 4, 8, 16, 32, 64]  # with Adam's two moments
    assert promised == [10 * 3 * 4 * 3 * sum(r * r for r in levels)] * 2


def test_tuning_works_where_the_test_split_does_not_exist(world: World, tmp_path: Path) -> None:
    """Kernels and distillation give the same bytes when every file of the test split is gone."""
    import shutil

    from clpdd.config.kernels import KernelSettings
    from clpdd.stages.kernels import compute_kernels

    layout, name = world.layout, world.encoder.name
    bare = type(layout)(tmp_path / "bare")
    for path in (layout.index("train"), layout.features(name, "train"), layout.features(name, "validation")):
        target = bare.root / path.relative_to(layout.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target)
    assert not [p for p in bare.root.rglob("*") if "test" in p.name]
    features = bare.features(name, "train"), bare.features(name, "validation")
    compute_kernels(*features, KernelSettings(), bare.kernels(name), run_in(bare.work))
    assert sha256_tree(bare.kernels(name)) == sha256_tree(layout.kernels(name))
    run(World(bare, world.encoder), tmp_path / "one")
    run(world, tmp_path / "other")
    assert sha256_tree(tmp_path / "one" / "set") == sha256_tree(tmp_path / "other" / "set")


@pytest.mark.parametrize("method", ["random", "centroid", "full"])
def test_baselines_hold_the_real_images_they_name(world: World, tmp_path: Path, method: str) -> None:
    data = run(world, tmp_path, method, images_per_class=2)
    index = Index.open(world.layout.index("train"))
    if method == "full":
        assert len(data) == 0
        assert data.info["training_images"] == len(index)
        return
    draws = 5 if method == "random" else 1
    assert len(data) == 20 * draws
    for image, label, source in zip(data.images, data.labels.tolist(), data.info["sources"], strict=True):
        row = index.ids.index(source)
        assert int(index.labels[row]) == label
        assert torch.equal(image, world.encoder.transform(index.image(row)))
    if method == "centroid":
        nearest = Kernels.load(world.layout.kernels(world.encoder.name)).nearest[:, :2].flatten().tolist()
        assert data.info["sources"] == [index.ids[row] for row in nearest]
    else:
        assert len({tuple(draw.images.flatten().tolist()) for draw in data.draws}) == 5


def test_optimising_beats_its_own_start(world: World, tmp_path: Path) -> None:
    data = run(world, tmp_path, steps=40, augment=AugmentSettings(crop=False, noise=0.0), learning_rate=0.02)
    losses = [loss for _, loss in data.info["curves"]["loss"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert data.start is not None
    assert not torch.equal(data.start, data.images)


def test_pyramid_grows_during_the_run(world: World, tmp_path: Path) -> None:
    data = run(world, tmp_path, initialisation="noise", steps=5, extend_every=2)
    flat = data.start.float().std((2, 3)) if data.start is not None else None
    assert flat is not None
    assert float(flat.max()) == 0  # the first level is one colour per image
    assert float(data.images.float().std((2, 3)).min()) > 0


def test_best_is_kept_by_validation_and_last_is_last(world: World, tmp_path: Path) -> None:
    best = run(world, tmp_path / "best", steps=16, keep="best")
    scores = dict(map(tuple, best.info["curves"]["validation_top1"]))
    assert best.info["validation_top1"] == max(scores.values())
    assert scores[best.info["kept_step"]] == max(scores.values())
    assert run(world, tmp_path / "last", steps=16, keep="last").info["kept_step"] == 16


def test_diverging_is_told_and_the_last_checkpoint_kept(world: World, tmp_path: Path) -> None:
    class Broken(Exception):
        pass

    from clpdd.methods.clp import ClosedFormProbe

    original = ClosedFormProbe.loss

    def poisoned(self: ClosedFormProbe, Z: torch.Tensor, step: int) -> torch.Tensor:
        return original(self, Z, step) * (float("nan") if step == 8 else 1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClosedFormProbe, "loss", poisoned)
        with pytest.raises(NumericalError, match=r"step 8.*learning_rate.*last checkpoint is kept"):
            run(world, tmp_path)
    assert list((tmp_path / "work").glob("distill/*/*/checkpoints/step-000000006.json"))
    assert not (tmp_path / "set").exists()


def test_repeated_images_with_no_ridge_are_a_singular_kernel(world: World, tmp_path: Path) -> None:
    off = AugmentSettings(flip=0.0, crop=False, noise=0.0)
    with pytest.raises(NumericalError, match=r"singular.*raise distill.ridge"):
        run(world, tmp_path, initialisation="zero", ridge=0.0, augment=off)


@pytest.mark.parametrize("method", ["clp", "lgm"])
def test_snapshots_show_the_way_and_a_killed_run_goes_on_showing_it(world: World, tmp_path: Path, method: str) -> None:
    def follow(root: Path, steps: list[int], stop_at: int | None = None) -> dict[int, Snapshot]:
        seen: dict[int, Snapshot] = {}

        def keep(snapshot: Snapshot) -> None:
            seen[snapshot.step] = snapshot
            if snapshot.step == stop_at:
                raise KeyboardInterrupt

        made = distill(
            variant(method, DistillSettings(**QUICK | {"keep": "last"})),
            **world.inputs(root, **SAVES),
            watch=Watch(snapshots=steps, on_snapshot=keep),
        )
        assert torch.equal(seen[12].images, made.images)
        return seen

    whole = follow(tmp_path / "a", [0, 5, 12])
    assert list(whole) == [0, 5, 12]
    assert 0 == whole[0].seconds < whole[5].seconds < whole[12].seconds
    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "b", [5], stop_at=5)
    rest = follow(tmp_path / "b", [0, 5, 12])
    assert set(rest) == {5, 12}  # the checkpoint was at step 3
    assert all(torch.equal(rest[step].images, whole[step].images) for step in rest)
    assert rest[12].seconds > rest[5].seconds > 0


def test_neighbours_are_the_nearest_real_images_of_the_same_class(world: World, tmp_path: Path) -> None:
    clp = run(world, tmp_path / "one")
    found = distill(
        variant("neighbor", DistillSettings(**QUICK)),
        **world.inputs(tmp_path / "one") | {"target": tmp_path / "neighbor"},
    )
    index, store = Index.open(world.layout.index("train")), FeatureStore.open(world.data.train)
    rows = [index.ids.index(name) for name in found.info["sources"]]
    Z, real = encode(world.encoder, clp.images), store.features()
    for z, label, row in zip(Z, clp.labels, rows, strict=True):
        similarity = torch.cosine_similarity(z[None], real)
        similarity[store.labels != label] = -1
        assert similarity[row] == pytest.approx(similarity.max().item(), abs=1e-5)
    # what it is near to was not made a second time
    assert len(list((tmp_path / "one" / "work" / "distill" / "clpdd_resnet14-clp").glob("*/done.json"))) == 1


def test_a_variant_is_called_by_its_name(world: World, tmp_path: Path) -> None:
    made = distill(MethodVariant("mine", "clp", DistillSettings(**QUICK)), **world.inputs(tmp_path))
    assert (made.method, made.name) == ("clp", "mine")
    assert made.info["encoder_images"] == {"forward": 120, "backward": 120}


def test_too_many_images_per_class_are_refused_before_work(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"distill\.images_per_class is 11"):
        run(world, tmp_path, "centroid", images_per_class=11)


def test_unknown_method_lists_the_known(world: World, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"known are {', '.join(METHODS)}$"):
        run(world, tmp_path, "magic")


def test_features_of_another_encoder_are_refused(world: World, tmp_path: Path) -> None:
    from clpdd.encoders.loading import load_encoder

    other = World(world.layout, world.encoder)
    inputs = other.inputs(tmp_path) | {"encoder": load_encoder("clpdd_resnet14", image_size=32, device="cpu")}
    with pytest.raises(ArtifactError, match="another encoder"):
        distill(variant("clp", DistillSettings(**QUICK)), **inputs)


@pytest.mark.parametrize("wrong", ["test as validation", "kernels of other features", "another index"])
def test_inputs_that_do_not_belong_together_are_refused(world: World, tmp_path: Path, wrong: str) -> None:
    """Above all, no path leads features of the test split into a distillation."""
    from clpdd.config.dataset import DatasetSettings, SplitLimits
    from clpdd.config.kernels import KernelSettings
    from clpdd.datasets.build import build_index
    from clpdd.stages.kernels import compute_kernels

    layout, name = world.layout, world.encoder.name
    inputs = world.inputs(tmp_path)
    if wrong == "test as validation":
        changed = {"validation": layout.features(name, "test")}
    elif wrong == "another index":
        build_index(DatasetSettings(max_per_class=SplitLimits(train=12)), 1, tmp_path / "index")
        changed = {"index": tmp_path / "index" / "train.parquet"}
    else:
        other = KernelSettings(nearest=3)
        stores = layout.features(name, "train"), layout.features(name, "validation")
        compute_kernels(*stores, other, tmp_path / "kernels", run_in(tmp_path / "work"))
        record = json.loads((tmp_path / "kernels" / "kernels.json").read_text())
        text = json.dumps(record).replace(record["digests"]["validation"], "0" * 64)
        (tmp_path / "kernels" / "kernels.json").write_text(text)
        changed = {"kernels": tmp_path / "kernels"}
    inputs["data"] = dataclasses.replace(world.data, **changed)
    with pytest.raises(ArtifactError):
        distill(variant("clp", DistillSettings(**QUICK)), **inputs)


def test_a_second_run_of_the_same_work_is_told_so(world: World, tmp_path: Path) -> None:
    process = in_a_process(world, tmp_path, steps=5000)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(BusyError, match=f"process {process.pid}"):
        run(world, tmp_path, steps=5000)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
