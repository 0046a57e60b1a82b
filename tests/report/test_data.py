"""The numbers of the report are those of the results."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.report.clocks import distill_seconds, git_revision
from clpdd.report.data import KEYS, gather, main_method, read_sources
from clpdd.report.page import render
from clpdd.report.transfer import heat_maps
from clpdd.stages.report import write_report
from clpdd.storage.layout import Layout
from clpdd.storage.work import WorkFolder

from .artifacts import results, variants
from .conftest import Page


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


@pytest.mark.parametrize(
    ("methods", "chosen"),
    [(["neighbor", "nearest", "lgm", "clp"], "lgm"), (["nearest", "full"], "nearest"), (["full"], "full")],
)
def test_the_page_is_about_the_first_method_that_makes_images_else_that_selects(
    methods: list[str], chosen: str
) -> None:
    settings = parse_settings({"methods": methods, "variants": {"nearest": {"method": "neighbor"}}})
    assert main_method(settings) == chosen


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


def test_a_row_of_a_probe_for_other_encoders_has_the_mean_over_these(many: tuple[Layout, Settings]) -> None:
    layout, settings = many
    sources, single = read_sources(layout, settings), settings.encoders[:-1]
    rows = [dict(row) for row in sources.results if row["distil_encoder"] != row["eval_encoder"]]
    taught = [row | {"protocol": "kd"} for row in rows if row["protocol"] == "sgd"]
    facts = gather(replace(sources, results=[*sources.results, *taught]), settings)
    found = {m["protocol"]: m for m in facts["cross"] if m["method"] == "clp" and m["views"] == "bank-100"}
    for i, shares in enumerate(found["kd"]["share_of_full"]):
        assert shares == [None if i == j else share for j, share in enumerate(found["sgd"]["share_of_full"][i])]
        known = [share for share in shares[: len(single)] if share is not None]
        assert found["kd"]["mean_share"][i] == pytest.approx(np.mean(known))
    drawn = heat_maps(facts)
    assert drawn is not None
    assert [(panel["protocol"], panel["others"]) for panel in drawn["made"]["clp"]].count(("kd", True)) == 1
    page = Page(render(facts, sources.sets, [], layout, settings))
    assert page.text.count("of others") == len([m for m in facts["cross"] if m["protocol"] == "kd"])
    assert "without the encoder of the row" in page.text


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


def test_the_reading_of_an_encoder_from_the_hub_is_found() -> None:
    """Its name holds a slash and a colon, which names of files do not."""
    work = WorkFolder("work", "distill", "hf-hub:a/b/clp", {})
    reading = {"stage": work.stage, "item": work.item, "seconds": 7.0}
    assert distill_seconds([reading], {"encoder": "hf-hub:a/b", "method": "clp"}) == 7.0
