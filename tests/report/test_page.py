"""The page as a file: the same bytes each time, nothing but itself needed, texts that stay text."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clpdd.config.dataset import DatasetSettings
from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.distilled.dataset import DistilledSet
from clpdd.errors import ArtifactError
from clpdd.report.titles import dataset_title
from clpdd.stages.report import write_report
from clpdd.storage.files import write_json
from clpdd.storage.layout import Layout

from .artifacts import DIGITS, HOSTILE, write_artifacts
from .conftest import Page


def test_same_artifacts_give_the_same_bytes(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = plain
    one, two = write_report(layout, settings, tmp_path / "one"), write_report(layout, settings, tmp_path / "two")
    assert {name: path.read_bytes() for name, path in one.items()} == {n: p.read_bytes() for n, p in two.items()}


def test_readings_and_runtime_leave_report_json_alone(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp", "full"]})
    layout = write_artifacts(tmp_path / "data", settings, DIGITS[:3], side=16)
    before = write_report(layout, settings, tmp_path / "one")["report.json"].read_bytes()
    shutil.rmtree(layout.clocks)
    moved = parse_settings({"methods": ["clp", "full"], "runtime": {"threads": 3}})
    assert write_report(layout, moved, tmp_path / "two")["report.json"].read_bytes() == before


def test_page_stays_small_for_a_hundred_classes(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp", "centroid", "full"]})
    names = [f"class number {i}" for i in range(100)]
    layout = write_artifacts(tmp_path, settings, names, side=72)
    html = write_report(layout, settings)["report.html"].read_text()
    assert len(html) < 5_000_000
    shown = Page(html)
    assert "The other 80 classes" in shown.text
    assert sum(name in shown.text for name in names) == 100
    assert len(shown.all("img")) == 20 * 3 + 80 + 1  # three rows of twenty classes, the others, the timelapse


@pytest.mark.parametrize("methods", [["clp", "centroid"], ["clp"], ["random", "centroid"], ["centroid"]])
def test_the_caption_explains_the_rows_that_are_there_and_no_others(methods: list[str], tmp_path: Path) -> None:
    settings = parse_settings({"methods": methods})
    paths = write_report(write_artifacts(tmp_path, settings, DIGITS[:3], side=16), settings)
    text = Page(paths["report.html"].read_text()).text
    assert ("“Most central” is" in text) == ("Most central real image" in text) == (len(methods) == 2)
    assert ("“Start” is" in text) == (methods[0] == "clp")


def test_a_start_that_is_the_most_central_image_is_shown_once(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp", "centroid"]})
    layout = write_artifacts(tmp_path, settings, DIGITS[:3], side=16)
    folder = layout.distilled("clpdd_resnet14", "centroid")
    start = DistilledSet.load(layout.distilled("clpdd_resnet14", "clp")).start
    assert start is not None
    dataclasses.replace(DistilledSet.load(folder), images=start).save(folder)
    text = Page(write_report(layout, settings)["report.html"].read_text()).text
    assert "Most central real image, where it started" in text
    assert "“Start” is" not in text


def test_the_line_of_all_data_is_explained_or_its_absence_is(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    text = Page(write_report(*plain, tmp_path)["report.html"].read_text()).text
    assert "all training images: 97.1 %, logistic regression" in text
    assert "is that of the SGD linear probe, 100 augmented views of each image: fixed before" in text
    settings = parse_settings({"methods": ["clp"]})
    layout = write_artifacts(tmp_path / "data", settings, DIGITS[:3], side=16)
    text = Page(write_report(layout, settings)["report.html"].read_text()).text
    assert "because the method full was not run: add it to methods" in text


def test_files_that_are_there_are_linked_by_their_place_beside_the_page(
    plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    shown = Page(write_report(*plain, tmp_path)["report.html"].read_text())
    links = [link["href"] for link in shown.all("a")]
    assert "../distilled/clpdd_resnet14/clp/data.parquet" in links
    assert "report.json" in links
    assert "metrics.json" not in links  # there is none
    assert "clpdd probe distilled/clpdd_resnet14/clp --out" in shown.text


def test_a_class_has_a_bar_for_every_method(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    html = write_report(*plain, tmp_path)["report.html"].read_text()
    assert [html.count(f'class="bar m{number}"') for number in range(4)] == [10, 10, 10, 0]


@pytest.mark.parametrize(
    ("values", "named", "title"),
    [
        ({"name": "folder", "train": "~/photos/train"}, "folder", "photos"),
        ({"name": "folder", "train": ["/x/cats and dogs/training", "/y"]}, "folder", "cats and dogs"),
        ({"name": "parquet", "train": "data/cifar10-train-*.parquet"}, "parquet", "cifar10"),
        ({"name": "parquet", "train": "/sets/flowers/data/train-00000-of-00002.parquet"}, "parquet", "flowers"),
        ({"name": "parquet", "train": "train.parquet"}, "parquet", "parquet"),
        ({"name": "folder", "train": "a/b", "title": "colours"}, "colours", "colours"),
        ({"name": "digits"}, "digits", "digits"),
        ({"name": "folder", "train": "a/b"}, "of another run", "of another run"),
    ],
)
def test_a_data_set_goes_by_its_own_name(values: dict[str, Any], named: str, title: str) -> None:
    assert dataset_title(named, DatasetSettings(**values)) == title


@pytest.mark.parametrize("methods", [["full"], ["centroid", "full"], ["random"], ["clp"]])
def test_any_choice_of_methods_makes_a_page(methods: list[str], tmp_path: Path) -> None:
    settings = parse_settings({"methods": methods})
    layout = write_artifacts(tmp_path, settings, DIGITS[:3], side=16)
    paths = write_report(layout, settings)
    sentence = json.loads(paths["report.json"].read_text())["headline"]["sentence"]
    kind = {"full": "All training", "centroid": "3 real", "random": "3 real", "clp": "3 synthetic"}[methods[0]]
    assert sentence.startswith(f"{kind} images reach ")
    assert ("% of what all" in sentence) == (methods == ["centroid", "full"])


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        ("results/results.parquet", "evaluate"),
        ("results/details.json", "evaluate"),
        ("distilled/clpdd_resnet14/clp", ""),
    ],
)
def test_missing_artifacts_are_named(missing: str, stage: str, tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp"]})
    layout = write_artifacts(tmp_path, settings, DIGITS[:2], side=16)
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=re.escape(missing)) as caught:
        write_report(layout, settings)
    assert stage in str(caught.value)
    assert not (layout.results / "report.html").exists()


def test_damaged_results_and_animations_are_named(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp"]})
    layout = write_artifacts(tmp_path, settings, DIGITS[:2], side=16)
    animation = layout.distilled("clpdd_resnet14", "clp") / "timelapse.gif"
    animation.write_bytes(b"GIF89a and nothing")
    with pytest.raises(ArtifactError, match=r"timelapse\.gif cannot be read"):
        write_report(layout, settings)
    animation.unlink()
    write_report(layout, settings)
    file = layout.results / "results.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ArtifactError, match=r"results\.parquet is damaged"):
        write_report(layout, settings)


def test_mean_per_class_accuracy_stands_on_the_page_where_it_is_another_than_top1(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp"]})
    layout = write_artifacts(tmp_path, settings, DIGITS[:2], side=16)
    assert "Mean per class" not in write_report(layout, settings)["report.html"].read_text()
    file = layout.results / "results.parquet"
    rows = pq.ParquetFile(file).read().to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"mean_per_class": 12.34} for row in rows]), file)
    written = write_report(layout, settings)
    assert '<td class="num">12.3</td>' in written["report.html"].read_text()
    assert {line["mean_per_class"]["mean"] for line in json.loads(written["report.json"].read_text())["summary"]} == {
        12.34
    }


def test_what_a_set_gains_over_random_images_stands_on_the_page(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp", "random"]})
    layout = write_artifacts(tmp_path, settings, DIGITS[:2], side=16)
    before = write_report(layout, settings)["report.html"].read_text()
    assert "Over random" not in before
    gains = {"sgd-bank-100": {"over_random": 33.21}, "closed_form-clean": {"over_random": -0.52}}
    write_json(layout.results / "metrics.json", {"clpdd_resnet14": {"clp": gains}})
    paths = write_report(layout, settings)
    page, facts = paths["report.html"].read_text(), json.loads(paths["report.json"].read_text())
    assert "Over random" in page
    assert '<td class="num">+33.2</td>' in page
    assert '<td class="num">−0.5</td>' in page
    assert {line["over_random"] for line in facts["summary"]} == {33.21, -0.52, None}
    assert "results/metrics.json" in facts["digests"]


def test_texts_from_the_data_stay_text(hostile: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = hostile
    shown = Page(write_report(layout, settings, tmp_path)["report.html"].read_text())
    assert not shown.all("script")
    assert all(name in shown.text for name in HOSTILE)
    assert not [name for _, attributes in shown.tags for name in attributes if name.startswith("on")]


def test_page_needs_nothing_else(hostile: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = hostile
    html = write_report(layout, settings, tmp_path)["report.html"].read_text()
    shown = Page(html)
    for tag, attributes in shown.tags:
        for name in ("src", "srcset", "href", "xlink:href", "data", "poster"):
            if name in attributes:
                citation = tag == "a" and attributes[name].startswith("https://arxiv.org/")
                places = (layout.results, tmp_path)
                beside = tag == "a" and any((place / attributes[name]).exists() for place in places)  # for readers
                assert citation or beside or attributes[name].startswith("data:"), (tag, attributes[name][:80])
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in next(m["content"] for m in shown.all("meta") if "http-equiv" in m)
    assert str(layout.root) not in html


def test_every_image_has_words_and_every_table_headers(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = plain
    shown = Page(write_report(layout, settings, tmp_path)["report.html"].read_text())
    assert all(image["alt"] for image in shown.all("img"))
    assert all(header["scope"] in {"col", "row", "rowgroup"} for header in shown.all("th"))
    assert all("aria-label" in a for _, a in shown.tags if a.get("role") in {"img", "region", "table"})
