"""The hand-over: a classifier from a distilled set alone, saved, loaded, and used on files."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clpdd.encoders.architectures
from clpdd.cli.main import main
from clpdd.config.augment import AugmentSettings
from clpdd.config.distill import DistillSettings
from clpdd.config.evaluate import EvaluateSettings
from clpdd.datasets.index import Index
from clpdd.datasets.listing import BadImages
from clpdd.datasets.sources.folder import scan
from clpdd.distilled.dataset import DistilledSet
from clpdd.encoders.calling import encode
from clpdd.errors import ArtifactError, DataError, ResourceError, SettingsError
from clpdd.features.store import FeatureStore
from clpdd.probe.classifier import (
    PROBES,
    Classifier,
    chosen_in_words,
    classify_files,
    find_images,
    train_classifier,
)
from clpdd.stages.distill import distill
from tests.runs import variant

from .conftest import World

GENTLE = AugmentSettings(flip=0.0, crop_area=[0.5, 1.0])
QUICK = EvaluateSettings(views=10, epochs=200, learning_rate=1e-2, augment=GENTLE)


@pytest.fixture(scope="module")
def data(world: World, tmp_path_factory: pytest.TempPathFactory) -> DistilledSet:
    settings = DistillSettings(steps=40, augment=GENTLE, validate_every=20, preview_every=40)
    return distill(variant("clp", settings), **world.inputs(tmp_path_factory.mktemp("classifier")))


@pytest.fixture(scope="module")
def classifier(world: World, data: DistilledSet) -> Classifier:
    return train_classifier(data, world.encoder, QUICK)


@pytest.mark.parametrize("protocol", ["sgd", "closed_form"])
def test_it_classifies_real_images_that_it_never_saw(world: World, data: DistilledSet, protocol: str) -> None:
    made = train_classifier(data, world.encoder, QUICK, protocol=protocol)
    test = FeatureStore.open(world.layout.features(world.encoder.name, "test"))
    scores = made(test.features())
    torch.testing.assert_close(scores.sum(1), torch.ones(len(test)))
    assert (scores.argmax(1) == test.labels).double().mean() > 0.7


def test_by_default_the_probe_is_the_one_that_does_best_on_validation_images(world: World, data: DistilledSet) -> None:
    store = FeatureStore.open(world.layout.features(world.encoder.name, "validation"))
    chosen = train_classifier(data, world.encoder, QUICK, validation=store)
    tried = chosen.info["validation"]["top1"]
    assert list(tried) == list(PROBES)
    for name, value in tried.items():
        made = train_classifier(data, world.encoder, QUICK, protocol=name)
        right = made(store.features()).argmax(1) == store.labels
        assert 100 * right.double().mean().item() == pytest.approx(value, abs=1e-3)
        if name == chosen.info["protocol"]:
            assert torch.equal(made.weight, chosen.weight)
    assert tried[chosen.info["protocol"]] == max(tried.values())
    assert f"the best on {len(store)} validation images (closed_form " in chosen_in_words(chosen)


def test_without_validation_images_it_is_the_closed_form_and_strange_ones_are_refused(
    world: World, data: DistilledSet
) -> None:
    alone = train_classifier(data, world.encoder, QUICK)
    assert alone.info["protocol"] == "closed_form"
    assert chosen_in_words(alone) == "the probe is closed_form: no validation images chose it"
    store = FeatureStore.open(world.layout.features(world.encoder.name, "validation"))
    store.class_names = store.class_names[::-1]
    with pytest.raises(ArtifactError, match="differs in classes: name a probe with --protocol"):
        train_classifier(data, world.encoder, QUICK, validation=store)


def test_views_that_nothing_augments_are_no_probe_of_their_own(world: World, data: DistilledSet) -> None:
    plain = QUICK.model_copy(update={"augment": AugmentSettings(flip=0.0, crop=False)})
    store = FeatureStore.open(world.layout.features(world.encoder.name, "validation"))
    made = train_classifier(data, world.encoder, plain, validation=store)
    assert list(made.info["validation"]["top1"]) == ["closed_form", "sgd"]


def test_the_command_finds_the_validation_images_beside_the_set(
    world: World, data: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = world.encoder.name
    data.save(tmp_path / "elsewhere" / "distilled" / name / "clp")
    (tmp_path / "elsewhere" / "features").symlink_to(world.layout.root / "features")
    (tmp_path / "quick.yaml").write_text("evaluate: {views: 2, epochs: 5}")
    line = ["--params", "quick.yaml", "probe", f"elsewhere/distilled/{name}/clp", "--out", "out.safetensors"]
    assert main(line) == 0
    assert set(Classifier.load("out.safetensors").info["validation"]["top1"]) == set(PROBES)


@pytest.mark.parametrize("protocol", ["sgd", "closed_form"])
def test_its_probabilities_say_how_often_it_is_right(world: World, data: DistilledSet, protocol: str) -> None:
    made = train_classifier(data, world.encoder, QUICK, protocol=protocol)
    test = FeatureStore.open(world.layout.features(world.encoder.name, "test"))
    scores = made(test.features())
    accuracy = (scores.argmax(1) == test.labels).double().mean().item()
    raw = dataclasses.replace(
        made, weight=made.weight * made.info["temperature"], bias=made.bias * made.info["temperature"]
    )
    uncalibrated = raw(test.features())
    assert accuracy > 0.6
    if protocol == "closed_form":
        assert uncalibrated.amax(1).mean() < 0.3  # as it comes out of the solve: no probability at all
    # of some dozen images, and the last bits of a frozen encoder, which threads decide, move it by some hundredths
    assert abs(scores.amax(1).mean().item() - accuracy) < 0.3
    losses = [torch.nn.functional.nll_loss(s.log(), test.labels).item() for s in (scores, uncalibrated)]
    assert losses[0] < losses[1] / (1.5 if protocol == "closed_form" else 1)
    assert torch.equal(scores.argmax(1), uncalibrated.argmax(1))


def test_closed_form_centres_by_the_real_mean_that_the_set_keeps_for_its_encoder(
    world: World, data: DistilledSet
) -> None:
    mean = torch.tensor(data.info["feature_mean"])
    torch.testing.assert_close(
        mean, FeatureStore.open(world.layout.features(world.encoder.name, "train")).features().mean(0)
    )

    def spread(info: dict[str, Any]) -> float:
        """Largest difference between the classes' scores at the mean real feature: none if that was the centre."""
        made = train_classifier(dataclasses.replace(data, info=info), world.encoder, QUICK, protocol="closed_form")
        scores = made.weight @ mean + made.bias
        return float(scores.max() - scores.min())

    assert spread(data.info) < 1e-4
    stranger = data.info | {"encoder": data.info["encoder"] | {"digest": "0"}}
    assert spread(stranger) > 1e-3


def test_the_same_set_gives_the_same_file_and_it_comes_back_as_it_was(
    world: World, data: DistilledSet, classifier: Classifier, tmp_path: Path
) -> None:
    classifier.save(tmp_path / "a.safetensors")
    train_classifier(data, world.encoder, QUICK).save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = Classifier.load(tmp_path / "a.safetensors")
    assert torch.equal(loaded.weight, classifier.weight)
    assert torch.equal(loaded.bias, classifier.bias)
    assert (loaded.class_names, loaded.encoder, loaded.info) == (
        classifier.class_names,
        classifier.encoder,
        classifier.info,
    )


def test_files_are_classified_as_their_features_are_and_a_bad_one_stops_nothing(
    world: World, classifier: Classifier, tmp_path: Path
) -> None:
    index = Index.open(world.layout.index("test"))
    (tmp_path / "below").mkdir()
    for row in range(5):
        index.image(row).save(tmp_path / "below" / f"{row}.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "notes.txt").write_text("not an image, not looked at")
    files = find_images([tmp_path])
    assert [f.name for f in files] == ["0.png", "1.png", "2.png", "3.png", "4.png", "broken.png"]
    found = list(classify_files(classifier, world.encoder, files, top=2, batch=4))
    expected = classifier(
        encode(world.encoder, torch.stack([world.encoder.transform(index.image(r)) for r in range(5)]))
    )
    for row, prediction in enumerate(found[:5]):
        assert prediction.classes[0] == classifier.class_names[int(expected[row].argmax())]
        assert prediction.probabilities[0] == pytest.approx(expected[row].max().item(), abs=1e-5)
        assert len(prediction.classes) == 2
    assert found[5].classes == ()
    assert found[5].problem is not None
    assert "broken.png" in found[5].problem


def test_a_folder_is_looked_through_as_for_an_index(tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / "sub").mkdir(parents=True)
    (new / ".cache").mkdir()
    (new / "__MACOSX").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in (
        "with,comma.png",
        "UPPER.PNG",
        "a.jfif",
        "sub/d.webp",
        "../elsewhere/e.png",
        ".hidden.png",
        ".cache/x.png",
    ):
        Image.new("RGB", (4, 4)).save(new / name, "PNG")
    for name in ("._with,comma.png", "__MACOSX/x.png", "Thumbs.db", "readme.txt", "noextension"):
        (new / name).write_bytes(b"clutter")
    (new / "linked").symlink_to(tmp_path / "elsewhere")
    (new / "up").symlink_to(new)
    (new / "one.png").symlink_to("UPPER.PNG")
    (new / "broken.png").symlink_to("nowhere.png")
    found = [path.relative_to(new).as_posix() for path in find_images([new])]
    assert found == ["UPPER.PNG", "a.jfif", "broken.png", "linked/e.png", "one.png", "sub/d.webp", "with,comma.png"]
    assert find_images([new / ".hidden.png", new / ".cache"]) == [new / ".hidden.png", new / ".cache/x.png"]  # named
    (tmp_path / "train/c").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir()
    for path in find_images([new]):
        if path.exists():
            (tmp_path / "train/c" / path.name).write_bytes(path.read_bytes())
    for path in (new / ".hidden.png", new / "._with,comma.png"):
        (tmp_path / "train/c" / path.name).write_bytes(path.read_bytes())
    listed = scan([tmp_path / "train"], "train", BadImages(False))["c"]
    assert [Path(file.name).name for file in listed] == [path.name for path in find_images([tmp_path / "train/c"])]


def test_refusals(world: World, data: DistilledSet, classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="one of best, closed_form, closed_form_clean, sgd"):
        train_classifier(data, world.encoder, QUICK, protocol="svm")
    empty = DistilledSet(
        torch.zeros(0, 3, 1, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ["a"], {"method": "full"}
    )
    with pytest.raises(DataError, match="holds no images"):
        train_classifier(empty, world.encoder, QUICK)
    other = dataclasses.replace(classifier, encoder=classifier.encoder | {"size": 32, "digest": "0"})
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(ArtifactError, match="digest, size"):
        list(classify_files(other, world.encoder, [tmp_path / "x.png"]))
    with pytest.raises(DataError, match="does not exist"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        find_images([tmp_path / "empty"])
    for content in (b"", b"\x80\x04pickle", b"x" * 400):
        (tmp_path / "bad.safetensors").write_bytes(content)
        with pytest.raises(ArtifactError, match="not a classifier"):
            Classifier.load(tmp_path / "bad.safetensors")
    with pytest.raises(ArtifactError, match="does not exist"):
        Classifier.load(tmp_path / "gone.safetensors")
    with pytest.raises(ArtifactError, match="is no file"):
        Classifier.load(tmp_path)
    with pytest.raises(SettingsError, match="top is 0"):
        list(classify_files(classifier, world.encoder, [tmp_path / "x.png"], top=0))


def test_a_named_pipe_is_refused_rather_than_waited_for(world: World, classifier: Classifier, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (found,) = classify_files(classifier, world.encoder, [tmp_path / "pipe.png"])
    assert found.problem is not None
    assert "pipe.png: the image is no regular file" in found.problem


def test_the_commands_lead_from_a_distilled_set_to_predictions(
    world: World,
    data: DistilledSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # no params.yaml: the defaults
    data.save("set")
    assert main(["probe", "set", "--out", "probe.safetensors", "--protocol", "closed_form"]) == 0
    assert main(["export", "set", "--to", "folder", "--out", "images"]) == 0
    capsys.readouterr()
    assert main(["predict", "probe.safetensors", "images", "--top", "2"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert list(rows[0]) == ["path", "class1", "probability1", "class2", "probability2"]
    # what it was trained on, it knows
    assert [row["class1"] for row in rows] == [data.class_names[label] for label in data.labels.tolist()]
    (tmp_path / "images" / "empty.png").touch()
    assert main(["predict", "probe.safetensors", "images"]) == DataError.exit_code
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 12
    assert "1 of 11 files could not be read" in told.err
    assert main(["predict", "probe.safetensors", "nowhere"]) == DataError.exit_code
    assert main(["probe", "nowhere", "--out", "x"]) == ArtifactError.exit_code


@pytest.fixture(scope="module")
def saved(classifier: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "probe.safetensors"
    classifier.save(path)
    return path


def test_every_row_of_the_predictions_has_every_column(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("good.png")
    Path("bad.png").touch()
    assert main(["predict", str(saved), "good.png", "bad.png", "--top", "99"]) == DataError.exit_code
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert [len(row) for row in rows] == [21, 21, 21]  # of ten classes
    assert rows[2] == ["bad.png", *[""] * 20]


def test_nothing_is_written_before_the_encoder_is_known_to_fit(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("good.png")
    assert main(["predict", str(saved), "good.png", "--image-size", "32"]) == ArtifactError.exit_code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("top", ["0", "-3", "x", "1.5"])
def test_counts_that_are_none_are_refused_as_arguments(saved: Path, top: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["predict", str(saved), "good.png", f"--top={top}"])
    assert left.value.code == 2


def test_paths_come_out_as_the_bytes_they_are_whatever_the_locale(saved: Path, tmp_path: Path) -> None:
    name = b"m\xf6we \xe2\x98\x83.png"  # Latin-1 and UTF-8 in one: no locale reads it
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    os.rename(tmp_path / "good.png", os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "params.yaml").write_text("dataset: {max_pixels: 10}")
    command = [sys.executable, "-m", "clpdd", "predict", str(saved), "."]
    environment = os.environ | {"PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.stdout.splitlines()[1:] == [name + b",,"]
    assert b"64 pixels" not in done.stderr
    assert b"8 x 8 pixels, more than dataset.max_pixels allows (10)" in done.stderr
    assert b"Traceback" not in done.stderr


def test_weights_named_on_the_line_are_taken_without_a_word(
    data: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data.save("set")
    weights = Path(clpdd.__file__).parent / "weights" / "clpdd_resnet14.tin100.safetensors"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = ["probe", "set", "--out", "out.safetensors", "--protocol", "closed_form", "--weights", str(weights)]
        assert main(line) == 0
    assert main(["predict", "out.safetensors", "set/images"]) == 0


def test_where_the_classifier_cannot_go_is_told_before_it_is_trained(
    data: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("clpdd.probe.classifier.train_classifier", None)
    data.save(tmp_path / "set")
    for out in (tmp_path, tmp_path / "set" / "data.parquet" / "x"):
        assert main(["probe", str(tmp_path / "set"), "--out", str(out)]) == ResourceError.exit_code
    assert "a folder stands where a file is needed" in capsys.readouterr().err
