"""The report: true numbers, one file that needs nothing else, and a page that holds together in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from clpdd.config import Settings, parse_settings
from clpdd.distilled import DistilledSet, grid
from clpdd.errors import ArtifactError
from clpdd.files import read_json, write_json
from clpdd.layout import Layout
from clpdd.report import write_report
from clpdd.report.clocks import git_revision
from clpdd.report.data import KEYS, gather, read_sources
from clpdd.report.figures import nice_ticks
from clpdd.report.page import duration
from clpdd.report.pictures import fit
from clpdd.report.transfer import heat_maps
from tests.browser import asked_schemes, emulate

MEANS = {"clp": 91.2, "random": 58.0, "centroid": 76.4, "full": 97.1}
ROWS: list[tuple[str, pa.DataType]] = [
    *((name, pa.string()) for name in ("dataset", "method", "distil_encoder", "eval_encoder", "protocol", "views")),
    *((name, pa.int64()) for name in ("ipc", "seed", "draw")),
    *((name, pa.float64()) for name in ("top1", "top5", "worst_group")),
    ("fingerprint", pa.string()),
]


# -- artifacts as the stages before write them -----------------------------------------------------------------------


def upscaled(images: np.ndarray, side: int) -> Tensor:
    """(n, 8, 8) in [0, 16] as (n, 3, side, side) uint8."""
    scaled = torch.from_numpy(images).float()[:, None] / 16
    grown = torch.nn.functional.interpolate(scaled, (side, side), mode="bicubic").clamp(0, 1)
    return (grown * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def sets(classes: int, ipc: int, side: int, names: list[str], encoder: str) -> dict[str, DistilledSet]:
    """Every method's set: digits, means of digits with a tint, and colour noise for the classes beyond ten."""
    digits = load_digits()
    rng = np.random.default_rng([classes, ipc, side])
    labels = torch.arange(classes).repeat_interleave(ipc)

    def real(number: int) -> Tensor:
        rows = [np.flatnonzero(digits.target == c % 10)[number + c // 10] for c in labels.tolist()]
        return upscaled(digits.images[rows], side)

    means = np.stack([digits.images[digits.target == c % 10].mean(0) for c in labels.tolist()])
    tint = torch.from_numpy(rng.normal(0, 38, (len(labels), 3, 16, 16))).float()
    tint = torch.nn.functional.interpolate(tint, (side, side), mode="bicubic")
    synthetic = (upscaled(means, side).float() + tint).clamp(0, 255).to(torch.uint8)
    start = real(3)
    blend = [(start.float() * (1 - a) + synthetic.float() * a).to(torch.uint8) for a in (0, 0.25, 0.5, 0.75, 1)]
    loss = [[i + 1, round(2.3 * 0.99**i + 0.4 + 0.1 * float(rng.normal()) ** 2, 6)] for i in range(400)]
    scores = [[step, round(91 - 40 * float(np.exp(-step / 90)), 4)] for step in range(0, 401, 50)]
    record = {
        "dataset": "digits",
        "images_per_class": ipc,
        "encoder": {"name": encoder, "dim": 768, "size": side, "digest": "ab" * 32},
        "fingerprint": "cd" * 32,
    }
    curves = {"loss": loss, "validation_top1": scores}
    none = torch.zeros(0, dtype=torch.int64)
    return {
        "clp": DistilledSet(
            synthetic,
            labels,
            names,
            record | {"method": "clp", "curves": curves, "kept_step": 350},
            start=start,
            frames=[grid(images) for images in blend],
        ),
        "random": DistilledSet(
            torch.cat([real(5), real(6)]),
            labels.repeat(2),
            names,
            record | {"method": "random"},
            draw=torch.arange(2).repeat_interleave(len(labels)),
        ),
        "centroid": DistilledSet(real(3), labels, names, record | {"method": "centroid"}),
        "full": DistilledSet(torch.zeros(0, 3, 1, 1, dtype=torch.uint8), none, names, record | {"method": "full"}),
    }


def variants(method: str) -> list[tuple[str, str, float]]:
    """(protocol, views, points lost) as evaluation runs them."""
    if method == "full":
        return [("closed_form", "clean", 3.0), ("logistic", "clean", 0.0)]
    return [("sgd", "bank-100", 0.0), ("closed_form", "clean", 1.5), ("closed_form", "bank-100", 3.0)]


def evaluations(settings: Settings) -> list[dict[str, Any]]:
    """The columns that tell evaluations apart, for every method and pair of encoders."""
    return [
        {"method": method, "distil_encoder": a, "eval_encoder": b, "protocol": protocol, "views": views}
        for a in settings.encoders
        for method in settings.methods
        for b in settings.encoders
        for protocol, views, _ in variants(method)
    ]


def results(settings: Settings) -> list[dict[str, Any]]:
    """Plausible rows, a seed's each."""
    rng = np.random.default_rng(0)
    rows = []
    for names in evaluations(settings):
        method = names["method"]
        lost = {(p, v): points for p, v, points in variants(method)}[names["protocol"], names["views"]]
        lost += 12 * (names["distil_encoder"] != names["eval_encoder"] and method != "full")
        for seed in range(1 if method == "full" else 5):
            top1 = MEANS[method] - lost + (0.0 if method == "full" else float(rng.normal()))
            row: dict[str, Any] = dict.fromkeys(name for name, _ in ROWS)
            row |= names | {"dataset": "digits", "seed": seed, "draw": 0, "top1": top1, "top5": min(100.0, top1 + 7)}
            row |= {"fingerprint": "ef" * 32, "ipc": None if method == "full" else settings.distill.images_per_class}
            rows.append(row)
    return rows


def details(settings: Settings, names: list[str]) -> dict[str, Any]:
    """Confusion matrices that agree with ``MEANS``, 45 test images of every class."""
    rng, n = np.random.default_rng(1), len(names)
    rows = []
    for found in evaluations(settings):
        share = MEANS[found["method"]] / 100
        chances = np.full((n, n), (1 - share) / (n - 1))
        np.fill_diagonal(chances, share)
        confusion = np.stack([rng.multinomial(45, row) for row in chances])
        per_class = (100 * np.diag(confusion) / 45).tolist()
        rows.append(found | {"probes": 1, "per_class": per_class, "confusion": confusion.tolist(), "notes": {}})
    return {"format": 1, "class_names": names, "test_images": [45] * n, "rows": rows}


def write_artifacts(root: Path, settings: Settings, names: list[str], side: int = 64, clocks: bool = True) -> Layout:
    """A data folder as the stages leave it."""
    layout, ipc, classes = Layout(root), settings.distill.most_per_class, len(names)
    for encoder in settings.encoders:
        made = sets(classes, ipc, side, names, encoder)
        for method in settings.methods:
            made[method].save(layout.distilled(encoder, method))
        write_json(layout.kernels(encoder) / "kernels.json", {"n": 1257, "encoder": made["clp"].info["encoder"]})
    table = pa.Table.from_pylist(results(settings), schema=pa.schema(ROWS))
    layout.results.mkdir(parents=True)
    pq.write_table(table, layout.results / "results.parquet")
    write_json(layout.results / "details.json", details(settings, names))
    if clocks:
        write_clocks(layout, settings)
    return layout


def write_clocks(layout: Layout, settings: Settings) -> None:
    """Sidecars of every stage but ``index``, as if that one had come out of a cache."""
    reading = {"peak_memory_mb": 812.5, "device": "cpu"}
    for encoder in settings.encoders:
        write_json(
            layout.clocks / f"cache-{encoder}.json",
            reading | {"stage": "cache", "item": encoder, "seconds": 42.3, "images_per_second": 411.0},
        )
        write_json(
            layout.clocks / f"kernels-{encoder}.json", reading | {"stage": "kernels", "item": encoder, "seconds": 0.61}
        )
        for method in settings.methods:
            seconds = 134.2 if method == "clp" else 0.4
            write_json(
                layout.clocks / f"distill-{encoder}-{method}.json",
                reading | {"stage": "distill", "item": f"{encoder}-{method}", "seconds": seconds},
            )
    rows = [found | {"seconds": 12.0, "peak_memory_mb": 900.0} for found in evaluations(settings)]
    write_json(
        layout.clocks / "evaluate.json", reading | {"stage": "evaluate", "item": "", "seconds": 96.0, "rows": rows}
    )


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
HOSTILE = [
    "<script>alert(1)</script>",
    "a" * 80,
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }} {% raw %}",
    "Nördliche Fichtenholzschindeldachdeckerei",
    "http://example.org/'&amp;",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Settings]:
    """One encoder, ten digits, one image per class."""
    settings = parse_settings({})
    return write_artifacts(tmp_path_factory.mktemp("plain"), settings, DIGITS), settings


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Settings]:
    """Two encoders, one of a long name, several images per class, and class names that try to be markup."""
    values = {
        "encoders": ["clpdd_resnet14", "vit_base_patch14_reg4_dinov2.lvd142m"],
        "distill": {"images_per_class": 3},
        "report": {"max_classes": 4, "images_per_row": 3},
    }
    settings = parse_settings(values)
    return write_artifacts(tmp_path_factory.mktemp("hostile"), settings, HOSTILE, side=16, clocks=False), settings


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Settings]:
    """Six encoders, the last of which joins the second and the third."""
    names = ["clpdd_resnet14", "clip", "siglip2", "vit_base_patch14_reg4_dinov2.lvd142m", "mae", "both"]
    joint = {"both": {"members": {"clip": 1.0, "siglip2": 2.0}}}
    settings = parse_settings({"encoders": names, "encoder_options": joint})
    layout = write_artifacts(tmp_path_factory.mktemp("many"), settings, DIGITS[:3], side=16)
    file = layout.kernels("both") / "kernels.json"
    record = read_json(file)
    write_json(file, record | {"encoder": record["encoder"] | {"members": [{"name": "clip"}, {"name": "siglip2"}]}})
    return layout, settings


class Page(HTMLParser):
    """Tags with their attributes, text outside ``style``, and every address the page refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_results(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = plain
    facts = json.loads(write_report(layout, settings, tmp_path)["report.json"].read_text())
    table = pq.read_table(layout.results / "results.parquet").to_pylist()
    for line in facts["summary"]:
        keys = ("method", "distil_encoder", "eval_encoder", "protocol", "views")
        own = [row["top1"] for row in table if all(row[key] == line[key] for key in keys)]
        assert line["runs"] == len(own)
        assert line["top1"]["mean"] == pytest.approx(np.mean(own), abs=1e-5)
        if len(own) > 1:
            assert line["top1"]["std"] == pytest.approx(np.std(own, ddof=1), abs=1e-5)
        else:
            assert line["top1"]["std"] is None


def test_full_data_bound_is_the_logistic_probe_for_sgd_and_the_ridge_probe_for_closed_form(
    plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = plain
    facts = json.loads(write_report(layout, settings, tmp_path)["report.json"].read_text())
    bounds = {s["protocol"]: s["top1"]["mean"] for s in facts["summary"] if s["method"] == "full"}
    assert set(bounds) == {"logistic", "closed_form"}
    for line in facts["summary"]:
        bound = bounds["logistic" if line["protocol"] == "sgd" else line["protocol"]]
        assert line["share_of_full"] == pytest.approx(100 * line["top1"]["mean"] / bound, abs=1e-4)


def test_headline_says_the_result_in_words(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = plain
    paths = write_report(layout, settings, tmp_path)
    headline = json.loads(paths["report.json"].read_text())["headline"]
    said = re.fullmatch(
        r"10 synthetic images reach ([\d.]+) % top-1, (\d+) % of what all 1,257 training images reach\.",
        headline["sentence"],
    )
    assert said is not None
    assert float(said[1]) == pytest.approx(headline["top1"]["mean"], abs=0.051)
    assert float(said[2]) == pytest.approx(100 * headline["top1"]["mean"] / headline["full"], abs=0.51)
    assert headline["sentence"] in Page(paths["report.html"].read_text()).text.replace("\u00a0", " ")


def test_heat_maps_across_encoders_have_every_pair_of_every_method_that_depends_on_one(
    hostile: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = hostile
    paths = write_report(layout, settings, tmp_path)
    facts = json.loads(paths["report.json"].read_text())
    order = [(p, v) for p, v, _ in sorted(variants("clp"), key=lambda v: (v[0] != "sgd", v[1]))]
    found = [(m["method"], m["synthetic"], m["protocol"], m["views"]) for m in facts["cross"]]
    assert found == [(name, made, p, v) for name, made in (("clp", True), ("centroid", False)) for p, v in order]
    line = {tuple(s[key] for key in KEYS): s for s in facts["summary"]}
    for m in facts["cross"]:
        for i, a in enumerate(settings.encoders):
            own = [line[m["method"], a, b, m["protocol"], m["views"]] for b in settings.encoders]
            assert m["top1"][i] == [s["top1"]["mean"] for s in own]
            assert m["share_of_full"][i] == [s["share_of_full"] for s in own]
            assert m["mean_share"][i] == pytest.approx(np.mean([s["share_of_full"] for s in own]))
        assert min(m["top1"][0][0], m["top1"][1][1]) > max(m["top1"][0][1], m["top1"][1][0])
    shown = Page(paths["report.html"].read_text())
    assert "Across encoders" in shown.text
    drawn = [td for td in shown.all("td") if "own" in td.get("class", "").split()]
    assert len(drawn) == 2 * len(facts["cross"])
    assert not [td for td in shown.all("td") if "joins" in td.get("class", "").split()]


def test_members_of_a_joint_encoder_are_marked_and_its_column_is_in_no_mean(many: tuple[Layout, Settings]) -> None:
    layout, settings = many
    facts = gather(read_sources(layout, settings), settings)
    drawn = heat_maps(facts)
    assert drawn is not None
    assert (drawn["numbered"], drawn["joint"], drawn["of_full"]) == (True, True, True)
    for m, panel in zip([m for m in facts["cross"] if m["synthetic"]], drawn["made"]["clp"], strict=True):
        kinds = [[cell["kind"] for cell in row["cells"]] for row in panel["rows"]]
        last = len(settings.encoders) - 1
        assert [i for i, row in enumerate(kinds) if row[i] == "own"] == list(range(len(settings.encoders)))
        assert [j for j, kind in enumerate(kinds[last]) if kind == "joins"] == [1, 2]
        assert sum(row.count("joins") for row in kinds) == 2
        for i, row in enumerate(panel["rows"]):
            assert row["mean"] == pytest.approx(np.mean(m["share_of_full"][i][:last]))
            for cell, share in zip(row["cells"], m["share_of_full"][i], strict=True):
                assert cell["shade"] == pytest.approx(100 * (share - drawn["low"]) / (100 - drawn["low"]), abs=0.5)


def test_without_all_training_images_shades_are_shares_of_the_best_of_a_column(many: tuple[Layout, Settings]) -> None:
    layout, settings = many
    chosen = settings.model_copy(update={"methods": ["clp", "centroid"]})
    sources = read_sources(layout, chosen)
    rows = [row for row in sources.results if row["method"] in chosen.methods]
    drawn = heat_maps(gather(replace(sources, results=rows), chosen))
    assert drawn is not None
    assert not drawn["of_full"]
    for p in range(3):
        panels = [drawn[kind][method][p] for kind, method in (("made", "clp"), ("chosen", "centroid"))]
        values = np.array([[[cell["value"] for cell in row["cells"]] for row in panel["rows"]] for panel in panels])
        shares = np.array([[[cell["share"] for cell in row["cells"]] for row in panel["rows"]] for panel in panels])
        np.testing.assert_allclose(shares, 100 * values / values.max((0, 1)))
    assert all(row["mean"] is None for panel in drawn["made"]["clp"] for row in panel["rows"])


def test_timed_results_are_the_results_and_their_readings(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = plain
    results = pq.read_table(layout.results / "results.parquet")
    timed = pq.read_table(write_report(layout, settings, tmp_path)["results-timed.parquet"])
    assert timed.select(results.column_names).equals(results)
    assert timed["seconds"].to_pylist() == [12.0] * len(results)
    assert timed["peak_memory_mb"].to_pylist() == [900.0] * len(results)
    assert set(timed["git"].to_pylist()) == {git_revision()}


def test_readings_that_are_missing_are_said_to_be(hostile: tuple[Layout, Settings], tmp_path: Path) -> None:
    layout, settings = hostile
    paths = write_report(layout, settings, tmp_path)
    assert pq.read_table(paths["results-timed.parquet"])["seconds"].null_count == len(results(settings))
    assert Page(paths["report.html"].read_text()).text.count("not measured here") >= 6  # header, table, five stages


# -- files -----------------------------------------------------------------------------------------------------------


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


# -- the page as text ------------------------------------------------------------------------------------------------


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
                assert citation or attributes[name].startswith("data:"), (tag, attributes[name][:80])
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


# -- small pieces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.013, 0.0171), (52.1, 97.9), (-3, 12000), (5, 5)])
def test_ticks_are_round_and_span_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    steps = np.diff(ticks)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


def test_durations_read_as_people_say_them() -> None:
    said = [duration(s) for s in (None, 0.421, 9.96, 53.2, 59.99, 125, 3599.7, 3780)]
    assert said == ["–", "0.42 s", "10 s", "53 s", "60 s", "2 min 05 s", "1 h 00 min", "1 h 03 min"]


def test_small_images_are_kept_losslessly_and_large_ones_within_the_budget() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (3, 48, 48), generator=generator, dtype=torch.uint8) for _ in range(6)]
    assert all(picture.uri.startswith("data:image/png") and picture.crisp for picture in fit(noise, 100_000))
    assert sum(len(picture.uri) for picture in fit(noise, 12_000)) <= 12_000
    large = [image.repeat(1, 8, 8) for image in noise]
    pictures = fit(large, 60_000)
    assert sum(len(picture.uri) for picture in pictures) <= 60_000
    assert not any(picture.crisp for picture in pictures)


# -- the page in a browser -------------------------------------------------------------------------------------------


CUT_OFF = """
const found = [], seen = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), range = document.createRange();
for (let node = seen.nextNode(); node; node = seen.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || element.closest('.scroll') || !element.checkVisibility({visibilityProperty: true})) continue;
  range.selectNodeContents(node);
  for (const box of range.getClientRects())
    if (box.left < -0.5 || box.right > document.documentElement.clientWidth + 0.5) found.push(node.data);
  for (let outer = element; outer !== document.body; outer = outer.parentElement) {
    const style = getComputedStyle(outer);
    const clips = style.overflowX !== 'visible' || style.overflowY !== 'visible' || style.textOverflow === 'ellipsis';
    if (clips && (outer.scrollWidth > outer.clientWidth + 1 || outer.scrollHeight > outer.clientHeight + 1))
      found.push(node.data);
  }
}
return found;
"""

CONTRAST = """
const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const light = rgb => [...rgb].slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
let worst = 21;
for (const element of document.querySelectorAll('p, span, td, th, dt, dd, li, h1, h2, h3, a, code, small, summary')) {
  if (!element.innerText.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
  let behind = element;
  while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
  const a = light(rgba(getComputedStyle(element).color)), b = light(rgba(getComputedStyle(behind).backgroundColor));
  worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
}
return worst;
"""


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["plain", "hostile", "many"])
def test_page_holds_together_in_a_browser(
    which: str, scheme: str, width: int, browser: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    layout, settings = request.getfixturevalue(which)
    emulate(browser, width, prefers_color_scheme=scheme)
    asked_schemes(browser)
    browser.get(write_report(layout, settings, tmp_path)["report.html"].as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")

    assert browser.get_log("browser") == []
    page = "document.documentElement"
    assert browser.execute_script(f"return {page}.scrollWidth <= {page}.clientWidth")
    assert browser.execute_script(CUT_OFF) == []
    assert browser.execute_script("return [...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    assert browser.execute_script(CONTRAST) >= 4.5
    for box in browser.execute_script("return [...document.querySelectorAll('.scroll')].map(b => b.clientWidth)"):
        assert box <= width

    assert asked_schemes(browser) <= {"file", "data"}


def test_readers_who_ask_for_less_motion_see_the_last_frame(
    browser: Any, plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = plain
    address = write_report(layout, settings, tmp_path)["report.html"].as_uri()
    shown = {}
    for motion in ("no-preference", "reduce"):
        emulate(browser, 1280, prefers_reduced_motion=motion)
        browser.get(address)
        shown[motion] = browser.execute_script("return document.querySelector('.lapse img').currentSrc")[:16]
    assert shown == {"no-preference": "data:image/gif;b", "reduce": "data:image/webp;"}


def test_a_narrow_page_turns_the_images_by_a_quarter(
    browser: Any, plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    layout, settings = plain
    address = write_report(layout, settings, tmp_path)["report.html"].as_uri()
    where = (
        "return [...document.querySelectorAll('.gallery img')].map(i => i.getBoundingClientRect()).map(b => [b.x, b.y])"
    )
    for width, same in ((1280, 1), (400, 0)):
        emulate(browser, width)
        browser.get(address)
        places = np.array(browser.execute_script(where)).reshape(10, 3, 2)  # class, kind, (x, y)
        assert np.ptp(places[:, :, same], axis=0).max() < 1  # the images of a kind share a row, or a column
        assert np.ptp(places[:, :, 1 - same], axis=1).max() < 1  # the images of a class share a column, or a row
