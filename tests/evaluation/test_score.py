"""Sets of any origin: judged as distilled ones are, refused where they cannot be, and what they are worth."""

from __future__ import annotations

import json
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from clpdd.cli.main import main
from clpdd.datasets.decode import decode_image
from clpdd.distilled.dataset import DistilledSet, png_bytes
from clpdd.distilled.export import export
from clpdd.distilled.foreign import read_set
from clpdd.encoders.calling import encode
from clpdd.errors import DataError
from clpdd.evaluation.image_counts import worth_on
from clpdd.evaluation.inputs import EvaluationData, open_bench
from clpdd.evaluation.subject import Bench, Subject
from clpdd.evaluation.worth import few_shot_curve, mean_distance, worth_of
from clpdd.features import versions
from clpdd.features.by_class import Scale
from clpdd.functional.coresets import herding
from clpdd.probe.closed_form import fit_ridge
from clpdd.probe.scoring import score
from clpdd.storage.files import read_json

from .conftest import SETTINGS, SPLITS, World, rows_of

NAMES = [str(c) for c in range(10)]


@pytest.fixture(scope="module")
def bench(world: World) -> Bench:
    stores = {split: world.root / "one" / f"{split}.zarr" for split in SPLITS}
    return open_bench(
        "one", EvaluationData(encoder=world.encoders["one"], kernels=world.root / "one" / "kernels", **stores)
    )


@pytest.fixture(scope="module")
def made(world: World) -> DistilledSet:
    return DistilledSet.load(world.distilled["one", "clp"])


def never(image: Image.Image) -> Tensor:
    raise AssertionError("square images of one size stay as they are")


def read(path: Path, transform: Any = never, names: list[str] = NAMES) -> DistilledSet:
    return read_set(path, names, transform, 10**6)


def write_folder(root: Path, images: Tensor, labels: list[int], names: list[str]) -> Path:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(png_bytes(image))
    return root


def write_parquet(path: Path, images: list[Any], labels: list[int], names: list[str] | None) -> Path:
    table = pa.table({"image": pa.array(images), "label": pa.array(labels, pa.int64())})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


# -- reading -----------------------------------------------------------------------------------------------------------


def test_a_set_is_the_same_as_folder_parquet_and_distilled_folder(
    world: World, made: DistilledSet, tmp_path: Path
) -> None:
    encoded = [png_bytes(image) for image in made.images]
    shuffled = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]
    forms = [
        world.distilled["one", "clp"],
        write_folder(tmp_path / "set", made.images, made.labels.tolist(), NAMES),
        write_parquet(tmp_path / "set.parquet", [encoded[c] for c in shuffled], shuffled, None),
        write_parquet(tmp_path / "named.parquet", encoded, [9 - c for c in range(10)], NAMES[::-1]),
    ]
    for form in forms:
        found = read(form)
        assert torch.equal(found.images, made.images)
        assert found.labels.tolist() == list(range(10))
        assert found.class_names == NAMES


def test_integers_that_a_file_does_not_name_are_numbers_where_classes_are_called_by_other_numbers(
    made: DistilledSet, tmp_path: Path
) -> None:
    names = ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7"]  # in the order of texts, as folders are numbered
    encoded = [png_bytes(image) for image in made.images]
    by_number = write_parquet(tmp_path / "a.parquet", encoded, list(range(10)), None)
    in_file = write_parquet(tmp_path / "b.parquet", encoded, list(range(10)), names)
    by_folder = write_folder(tmp_path / "c", made.images, made.labels.tolist(), names)
    by_value = write_parquet(tmp_path / "d.parquet", encoded, [int(name) for name in names], None)  # 11 is no number
    for form in (by_number, in_file, by_folder, by_value):
        assert torch.equal(read(form, names=names).images, made.images)


def test_columns_are_those_of_the_data_or_the_usual_ones(made: DistilledSet, tmp_path: Path) -> None:
    encoded = [png_bytes(image) for image in made.images]
    usual = write_parquet(tmp_path / "usual.parquet", encoded, list(range(10)), None)
    own = tmp_path / "own.parquet"
    pq.write_table(pq.read_table(usual).rename_columns(["img", "fine"]), own)
    for path in (usual, own):
        assert torch.equal(read_set(path, NAMES, never, 10**6, ("img", "fine")).images, made.images)
    with pytest.raises(DataError, match="has no column 'image'"):
        read(own)


def test_class_folders_may_be_numbers_where_the_classes_have_names(made: DistilledSet, tmp_path: Path) -> None:
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    by_number = write_folder(tmp_path / "a", made.images, made.labels.tolist(), [f"{c:05d}" for c in range(10)])
    by_name = write_folder(tmp_path / "b", made.images, made.labels.tolist(), words)
    for folder in (by_number, by_name):
        assert torch.equal(read(folder, names=words).images, made.images)
    with pytest.raises(DataError, match=r"the class 'eight' is not among the 10 .* or 0 to 9"):
        read(by_name)


def test_images_of_several_sizes_are_resized_and_cropped(bench: Bench, made: DistilledSet, tmp_path: Path) -> None:
    root = write_folder(tmp_path, made.images, made.labels.tolist(), NAMES)
    Image.new("RGB", (70, 50), "red").save(root / "4" / "wide.png")
    found = read(root, bench.encoder.transform)
    assert found.images.shape == (11, 3, 32, 32)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9]


def test_what_is_exported_can_be_judged_again(made: DistilledSet, tmp_path: Path) -> None:
    names = ["tench", "goldfish", "a/b", "shark", *map(str, range(4, 10))]  # their order is not that of the labels
    replace(made, class_names=names).save(tmp_path / "set")
    for form in ("folder", "huggingface"):
        found = read(export(tmp_path / "set", form, tmp_path / form), names=names)
        assert torch.equal(found.images, made.images)
        assert found.labels.tolist() == list(range(10))


def test_photographs_of_several_sizes_are_not_all_held_at_their_own(
    made: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path, made.images, made.labels.tolist(), NAMES)
    Image.new("RGB", (70, 50), "red").save(root / "4" / "wide.png")
    decoded, most = list[weakref.ref[Image.Image]](), 0

    def decode(*arguments: Any) -> Image.Image:
        picture = decode_image(*arguments)
        decoded.append(weakref.ref(picture))
        return picture

    def transform(picture: Image.Image) -> Tensor:
        nonlocal most
        most = max(most, sum(one() is not None for one in decoded))
        return torch.zeros(3, 32, 32, dtype=torch.uint8)

    monkeypatch.setattr("clpdd.distilled.foreign.decode_image", decode)
    assert len(read(root, transform).images) == 11
    assert most <= 2


def test_pillows_own_limit_of_pixels_decides_nothing(
    made: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path, made.images, made.labels.tolist(), NAMES)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert torch.equal(read(root).images, made.images)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.pt", "data.pth", "images.npy", "set.safetensors"])
def test_files_of_tensors_are_refused_by_name_also_in_a_folder_and_in_class_folders(tmp_path: Path, name: str) -> None:
    top, of_classes = tmp_path / "top", tmp_path / "of classes"
    for folder in (top, of_classes / "3", of_classes / "4" / "deeper"):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"anything")
    for path in (top, top / name, of_classes):
        with pytest.raises(DataError, match=rf"{name} holds tensors, which mostly were normalised already"):
            read(path)


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-2.1, 2.6, r"floats from -2\.1 to 2\.6, outside \[0, 1\] and 0 to 255: the images were normalised already"),
        (0.0, 1.0, r"floats from 0 to 1, where encoded 8-bit images are read"),
    ],
)
def test_float_images_are_refused_and_those_beyond_the_range_as_normalised(
    made: DistilledSet, tmp_path: Path, low: float, high: float, told: str
) -> None:
    values = np.linspace(low, high, 32 * 32, dtype=np.float32).reshape(32, 32)
    root = write_folder(tmp_path / "set", made.images, made.labels.tolist(), NAMES)
    (root / "3" / "3.png").unlink()
    Image.fromarray(values).save(root / "3" / "x.tiff")
    with pytest.raises(DataError, match=told) as refused:
        read(root)
    assert "x.tiff" in str(refused.value)
    nested = [[values.tolist()] * 3] * 10
    path = write_parquet(tmp_path / "set.parquet", nested, list(range(10)), None)
    with pytest.raises(DataError, match=told):
        read(path)


@pytest.mark.parametrize("form", ["tensor", "view", "pixel_values"])
def test_normalised_arrays_of_any_type_and_name_are_called_so(tmp_path: Path, form: str) -> None:
    values = np.linspace(-2, 2, 10 * 12, dtype=np.float32).reshape(10, 3, 2, 2)
    flat = values.reshape(10, -1).tolist()
    if form == "tensor":
        column: Any = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    else:
        column = pa.array(flat, pa.list_view(pa.float32()) if form == "view" else pa.list_(pa.float32()))
    name = "pixel_values" if form == "pixel_values" else "image"
    pq.write_table(pa.table({name: column, "label": list(range(10))}), tmp_path / "set.parquet")
    with pytest.raises(DataError, match=rf"column '{name}' holds floats from -2 to 2, .*were normalised already"):
        read(tmp_path / "set.parquet")


def test_arrays_of_integers_are_refused_as_arrays(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "set.parquet", [[[0, 255]] * 2] * 10, list(range(10)), None)
    with pytest.raises(DataError, match="integers in lists from 0 to 255, where encoded 8-bit images are read"):
        read(path)


@pytest.mark.parametrize("values", [[[None, None]] * 10, [[["a"]]] * 10])
def test_lists_of_no_numbers_are_refused_as_lists(tmp_path: Path, values: list[Any]) -> None:
    path = write_parquet(tmp_path / "set.parquet", values, list(range(10)), None)
    with pytest.raises(DataError, match=r"column 'image' holds lists of .*, where encoded images are read: write PNG"):
        read(path)


def test_soft_labels_are_not_left_out_without_a_word(made: DistilledSet, tmp_path: Path) -> None:
    soft = torch.full((10, 10), 0.02) + 0.8 * torch.eye(10)
    replace(made, soft_labels=soft).save(tmp_path / "set")
    for form in ("folder", "huggingface"):
        with pytest.raises(DataError, match="has soft labels, which are not read from there: name"):
            read(export(tmp_path / "set", form, tmp_path / form))


def test_independent_draws_are_not_pooled_into_one_set(world: World, made: DistilledSet, tmp_path: Path) -> None:
    draws = world.distilled["one", "random"]
    assert len(DistilledSet.load(draws).draws) > 1
    with pytest.raises(
        DataError, match=r"holds \d+ independent draws, each a set of its own: name the distilled folder"
    ):
        read(draws / "data.parquet")
    assert len(read(draws).draws) > 1
    assert len(read(export(draws, "huggingface", tmp_path / "one", draw=1))) == 10
    assert torch.equal(read(world.distilled["one", "clp"] / "data.parquet").images, made.images)


def test_remedies_are_for_the_set_and_not_for_the_settings_of_the_data(made: DistilledSet, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "set", made.images, made.labels.tolist(), NAMES)
    (root / "3" / "3.png").rename(root / "3.png")
    with pytest.raises(DataError, match=r"set/3\.png: the image .*: repair or remove it$") as beside:
        read(root)
    (root / "3.png").rename(root / "3" / "3.png")
    (root / "3" / "notes.png").write_text("no picture")
    with pytest.raises(DataError, match=r"notes\.png: the image is in none of the formats that are read") as bad:
        read(root, lambda picture: torch.zeros(3, 32, 32, dtype=torch.uint8))
    write_folder(tmp_path / "nested" / "train", made.images, made.labels.tolist(), NAMES)
    write_folder(tmp_path / "nested" / "test", made.images, made.labels.tolist(), NAMES)
    with pytest.raises(DataError, match=r"look like splits, not classes: name \S+train instead$") as nested:
        read(tmp_path / "nested")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no class folder") as none:
        read(tmp_path / "none")
    for refused in (beside, bad, nested, none):
        assert "dataset." not in str(refused.value)


def test_sets_that_cannot_be_judged_say_why(world: World, made: DistilledSet, tmp_path: Path) -> None:
    some = write_folder(tmp_path / "some", made.images[:7], made.labels[:7].tolist(), NAMES)
    with pytest.raises(DataError, match=r"has no image of 3 of 10 classes, e\.g\. '7'"):
        read(some)
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has other classes than the data"):
        read(world.distilled["one", "clp"], names=["cat", *NAMES[1:]])
    with pytest.raises(DataError, match="holds no images"):
        read(world.distilled["one", "full"])


# -- what a set carries ------------------------------------------------------------------------------------------------


def test_the_few_shot_curve_is_the_probe_on_so_many_real_features(bench: Bench) -> None:
    curves = few_shot_curve(bench, 0.1, seed=0, counts=(1, 5, 100))
    assert [count for count, _ in curves["herding"]] == [count for count, _ in curves["random"]] == [1, 5]
    Z, labels = bench.train.features(), bench.train.labels
    scaled = Scale.of(bench.kernels, bench.encoder.parts)(Z)
    for count, top1 in curves["herding"]:
        rows = []
        for c in range(10):
            members = (labels == c).nonzero().flatten()
            rows += members[herding(scaled[members], count)].tolist()
        probes = fit_ridge(Z[rows][None], labels[rows][None], 10, bench.kernels.mean, 0.1)
        assert top1 == pytest.approx(score(probes, bench.judge.blocks(4096)).top1[0], abs=1.3)  # one image in 80
    assert curves == few_shot_curve(bench, 0.1, seed=0, counts=(1, 5))
    assert curves["random"] != few_shot_curve(bench, 0.1, seed=1, counts=(1, 5))["random"]


def test_worth_is_read_off_the_curve_on_a_logarithmic_scale() -> None:
    curve = [(1, 40.0), (5, 50.0), (20, 60.0)]
    assert worth_on(curve, 39.9) == "<1"
    assert worth_on(curve, 40.0) == "1.0"
    assert worth_on(curve, 55.0) == f"{math.sqrt(5 * 20):.1f}" == "10.0"
    assert worth_on(curve, 60.0) == "20.0"
    assert worth_on(curve, 60.1) == ">20"


def test_worth_is_the_first_count_that_reaches_it_also_on_a_curve_that_stays_level_or_falls() -> None:
    assert worth_on([(1, 50.0), (2, 90.0), (5, 90.0), (10, 88.0)], 90.0) == "2.0"
    assert worth_on([(1, 50.0), (2, 100.0), (5, 100.0), (10, 100.0)], 100.0) == "2.0"
    assert worth_on([(1, 60.0), (2, 55.0), (5, 58.0)], 60.0) == "1.0"
    assert worth_on([(1, 60.0), (2, 55.0), (5, 65.0)], 60.0) == "1.0"
    assert worth_on([(1, 100.0), (2, 100.0)], 100.0) == "1.0"


def test_the_distance_of_class_means_is_0_at_the_real_ones_and_1_at_the_mean_of_all(bench: Bench) -> None:
    means = bench.kernels.class_means
    labels = torch.arange(10)
    assert mean_distance(means, labels, bench) == pytest.approx(0, abs=1e-6)
    centre = means.double().mean(0).float().expand(10, -1)
    assert mean_distance(centre, labels, bench) == pytest.approx(1, abs=1e-4)
    assert mean_distance(2 * means - centre, labels.repeat(1), bench) == pytest.approx(1, abs=1e-4)


def test_class_means_of_soft_labels_are_weighted_by_them(bench: Bench) -> None:
    """Also where a class is no image's likeliest."""
    means = bench.kernels.class_means
    soft = torch.eye(10)
    soft[1] = soft[1] * 0.4 + soft[0] * 0.6  # the image of the class 1 is likelier of the class 0
    assert mean_distance(means, torch.eye(10), bench) == pytest.approx(0, abs=1e-6)
    real = means.double()
    apart = ((real[0] + 0.6 * real[1]) / 1.6 - real[0]).square().sum()  # the class 1 still has its own mean
    expected = math.sqrt(apart / (real - real.mean(0)).square().sum())
    assert mean_distance(means, soft, bench) == pytest.approx(expected, rel=1e-5)


def test_a_class_that_no_image_stands_for_is_left_out_of_the_distance(bench: Bench) -> None:
    means = bench.kernels.class_means
    soft = torch.eye(10)
    soft[1] = soft[0]
    real = means.double()
    expected = math.sqrt(
        ((real[0] + real[1]) / 2 - real[0]).square().sum() / (real - real.mean(0))[[0, *range(2, 10)]].square().sum()
    )
    assert mean_distance(means, soft, bench) == pytest.approx(expected, rel=1e-5)


def test_a_set_of_real_images_is_worth_what_their_features_say(world: World, bench: Bench, made: DistilledSet) -> None:
    found = worth_of(Subject(made, bench, SETTINGS, 0, lambda: None), SETTINGS.ridge)
    Z = encode(bench.encoder, made.images)
    probes = fit_ridge(Z[None], made.labels[None], 10, bench.kernels.mean, SETTINGS.ridge)
    assert found.top1 == pytest.approx(score(probes, bench.judge.blocks(4096)).top1[0])
    assert found.share_of_full == pytest.approx(100 * found.top1 / found.full)
    assert "worth " in found.described()
    apart = f"class means lie {found.mean_distance:.2f} times as far from the real ones as the mean of all classes does"
    assert apart in found.described().splitlines()
    assert "real images per class" in found.described()


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits with the shipped encoder, a few of each, evaluated once."""
    root = tmp_path_factory.mktemp("project")
    (root / "params.yaml").write_text(
        "methods: [centroid, random]\n"
        "dataset: {max_per_class: {train: 12, validation: 6, test: 6}}\n"
        "evaluate: {seeds: 2, epochs: 20, views: 3}\n"
    )
    one = ("--encoder", "clpdd_resnet14")
    made = [("distill", *one, "--method", method) for method in ("centroid", "random")]
    for command in (("index",), ("cache", *one), ("kernels", *one), *made, ("evaluate",)):
        assert run(root, *command) == 0
    return root


def run(root: Path, *arguments: str) -> int:
    return main(["--params", str(root / "params.yaml"), "--data", str(root / "data"), *arguments])


def test_the_command_tells_what_evaluation_tells_of_the_same_images(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = project / "data" / "distilled" / "clpdd_resnet14" / "centroid"
    capsys.readouterr()
    assert run(project, "score", str(made), "--encoder", "clpdd_resnet14", "--worth") == 0
    out = capsys.readouterr().out
    for row in rows_of(project / "data" / "results"):
        if (row["method"], row["protocol"], row["views"]) == ("centroid", "closed_form", "clean"):
            assert re.search(rf"^clpdd_resnet14  closed_form  clean +{row['top1']:.2f} ", out, re.MULTILINE)
            assert f"closed form on the images as they are: {row['top1']:.2f} %" in out
    assert "worth " in out
    assert run(project, "score", str(project / "params.yaml"), "--encoder", "clpdd_resnet14") == 3
    assert "params.yaml" in capsys.readouterr().err
    assert run(project, "score", str(made), "--encoder", "resnet18") == 2
    empty = ["--params", str(project / "params.yaml"), "--data", str(project / "empty")]
    assert main([*empty, "score", str(made)]) == 4
    assert "run clpdd cache and clpdd kernels, each with --encoder clpdd_resnet14" in capsys.readouterr().err


def test_other_programs_get_what_evaluation_wrote_and_the_gain_over_random_images(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The random images are those of the method ``random``, image for image: so are the differences."""
    made = str(project / "data" / "distilled" / "clpdd_resnet14" / "centroid")
    capsys.readouterr()
    assert run(project, "score", made, "--random", "--json", "--worth") == 0
    *lines, worth = json.loads(capsys.readouterr().out)
    metrics = read_json(project / "data" / "results" / "metrics.json")["clpdd_resnet14"]["centroid"]
    assert {f"{line['protocol']}-{line['views']}" for line in lines} == set(metrics)
    for line in lines:
        wanted = metrics[f"{line['protocol']}-{line['views']}"]
        for name in ("top1", "over_random", "top5", "mean_per_class"):
            assert line[name] == pytest.approx(wanted[name], abs=1e-4), name
        assert (line["eval_encoder"], line["worst_group"]) == ("clpdd_resnet14", None)
        assert (line["top1_std"] is None) == (line["probes"] == 1)
    (clean,) = [line["top1"] for line in lines if (line["protocol"], line["views"]) == ("closed_form", "clean")]
    assert worth["worth"]["top1"] == clean
    assert worth["worth"]["curves"].keys() == {"random", "herding"}
    for name, curve in worth["worth"]["curves"].items():
        assert worth["worth"]["worth"][name] == worth_on(curve, clean)


def test_a_curve_that_memory_cannot_hold_is_refused_before_any_probe_with_a_remedy_that_works(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = str(project / "data" / "distilled" / "clpdd_resnet14" / "centroid")
    monkeypatch.setattr("clpdd.features.by_class.free_bytes", lambda device: 2**10)
    with monkeypatch.context() as patched:
        patched.setattr("clpdd.stages.score.run_protocol", None)
        assert run(project, "score", made, "--worth") != 0
    said = capsys.readouterr().err
    assert "the few-shot curve needs" in said
    assert "or leave out --worth" in said
    assert run(project, "score", made) == 0


def test_without_random_images_no_gain_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(project, "score", str(project / "data" / "distilled" / "clpdd_resnet14" / "centroid"), "--json") == 0
    assert {line["over_random"] for line in json.loads(capsys.readouterr().out)} == {None}


def test_more_random_images_than_there_are_training_images_are_refused(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [0] * 13 + list(range(1, 10))
    write_folder(tmp_path / "set", torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8), labels, NAMES)
    assert run(project, "score", str(tmp_path / "set"), "--random") == 3
    assert "class '0' has 13 images in the set, and only 12 training images" in capsys.readouterr().err


def test_test_features_of_other_versions_are_compared_before_images_are_judged_by_them(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        "score",
        str(project / "data" / "distilled" / "clpdd_resnet14" / "centroid"),
        "--encoder",
        "clpdd_resnet14",
    )
    monkeypatch.setattr(versions, "deciding_versions", lambda: {"timm": "99.0"})
    assert run(project, *asked) == 0  # the same features
    monkeypatch.setattr(versions, "encode", lambda *given: 1.1 * encode(*given))
    capsys.readouterr()
    assert run(project, *asked) == 4
    said = capsys.readouterr().err
    assert "test.zarr was made by timm" in said
    assert "have other features" in said
