"""The result table: sorted, with its share of all data, and the one number said in words."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clpdd.catalogue.protocols import PROTOCOLS
from clpdd.config.settings import Settings
from clpdd.report.data import gather, read_sources
from clpdd.report.lines import COLUMNS, headline_of, result_lines
from clpdd.report.results import Results
from clpdd.report.table import result_csv, result_json, result_table, table_of
from clpdd.runtime.tables import aligned
from clpdd.storage.files import write_json
from clpdd.storage.layout import Layout


def test_the_number_is_said_in_words_below_the_table() -> None:
    lines = [line(method, protocol, views, top1) for method, protocol, views, top1 in SCORES]
    text = table_of(lines).splitlines()
    assert text[0].split("  ")[0] == "probe"
    assert (
        text[-1] == "the number: clp 87.7 % top-1 (sgd, 100 augmented views), 89.7 % of what all training images reach"
    )


SCORES = [("full", "logistic", "clean", 97.8), ("clp", "sgd", "bank-100", 87.74), ("random", "sgd", "bank-100", 49.5)]


def test_every_probe_of_a_table_is_said_in_words_that_are_true_of_its_rows() -> None:
    bound = line("full", "logistic", "clean", 97.8)

    def words(*lines: dict[str, Any]) -> dict[str, str]:
        below = table_of(list(lines)).split("\n\n")[1].splitlines()
        return dict(said.split(": ", 1) for said in below if not said.startswith("the number"))

    on_all = "logistic regression on all training images"
    assert words(bound)["logistic"] == on_all
    sets = [line("clp", name, "clean", 80.0) for name in PROTOCOLS]
    assert words(bound, *sets[:2])["logistic"] == f"{on_all}, the bound of sgd"
    told = words(bound, *sets)
    assert {*told} == {*PROTOCOLS}
    assert "all training images" not in told["logistic"]
    assert words(bound, sets[0], sets[3])["logistic"] == f"{on_all}, the bound of sgd, knn"


def line(method: str, protocol: str, views: str, top1: float) -> dict[str, Any]:
    names: dict[str, Any] = {"method": method, "protocol": protocol, "views": views}
    names |= {"distil_encoder": "e", "eval_encoder": "e"}
    share = None if method == "full" else 100 * top1 / 97.8
    scores = dict.fromkeys(COLUMNS) | {"top1": top1, "share_of_full": share, "top5": 100.0, "mean_per_class": top1}
    return scores | names | {"ipc": 1, "probes": 1, "headline": method == "clp"}


def test_lines_of_results_are_sorted(plain: tuple[Layout, Settings]) -> None:
    lines = result_lines(plain[0].results / "results.parquet")
    assert [(found["protocol"], found["views"], found["method"]) for found in lines] == [
        ("logistic", "clean", "full"),
        ("sgd", "bank-100", "clp"),
        ("sgd", "bank-100", "centroid"),
        ("sgd", "bank-100", "random"),
        ("closed_form", "clean", "full"),
        ("closed_form", "bank-100", "clp"),
        ("closed_form", "bank-100", "centroid"),
        ("closed_form", "bank-100", "random"),
        ("closed_form", "clean", "clp"),
        ("closed_form", "clean", "centroid"),
        ("closed_form", "clean", "random"),
    ]


def test_a_share_is_that_of_the_probe_on_all_data_that_bounds_it(plain: tuple[Layout, Settings]) -> None:
    lines = result_lines(plain[0].results / "results.parquet")
    full = {found["protocol"]: found["top1"] for found in lines if found["method"] == "full"}
    bounds = {"sgd": full["logistic"], "closed_form": full["closed_form"]}
    assert (full["logistic"], full["closed_form"]) == pytest.approx((97.1, 94.1))
    for found in lines:
        expected = None if found["method"] == "full" else 100 * found["top1"] / bounds[found["protocol"]]
        assert found["share_of_full"] == (expected if expected is None else pytest.approx(expected, abs=1e-4))


def test_the_number_is_the_first_probe_of_what_a_method_made(plain: tuple[Layout, Settings]) -> None:
    lines = result_lines(plain[0].results / "results.parquet")
    chosen = headline_of(lines)
    assert chosen is not None
    assert (chosen["method"], chosen["protocol"], chosen["views"]) == ("clp", "sgd", "bank-100")
    assert headline_of([found for found in lines if found["method"] == "full"]) is None


def test_a_variant_of_a_coreset_makes_no_images_and_is_not_the_number(
    plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    table = pq.read_table(plain[0].results / "results.parquet")
    rows = [row | {"made_by": row["method"]} for row in table.to_pylist()]
    chosen = [row | {"method": "chosen", "made_by": "herding"} for row in rows if row["method"] == "clp"]
    pq.write_table(pa.Table.from_pylist([*chosen, *rows]), tmp_path / "results.parquet")
    number = headline_of(result_lines(tmp_path / "results.parquet"))
    assert number is not None
    assert number["method"] == "clp"


def test_the_report_has_the_same_number(plain: tuple[Layout, Settings]) -> None:
    layout, settings = plain
    shown = gather(read_sources(layout, settings), settings)["headline"]
    lines = result_lines(layout.results / "results.parquet")
    (chosen,) = [found for found in lines if found["headline"]]
    assert [shown[name] for name in ("method", "protocol", "views")] == ["clp", "sgd", "bank-100"]
    assert (shown["top1"]["mean"], shown["share_of_full"]) == (chosen["top1"], chosen["share_of_full"])
    assert chosen == headline_of(lines)


def test_codes_are_said_in_words_and_numbers_stand_below_each_other(plain: tuple[Layout, Settings]) -> None:
    text = result_table(plain[0]).splitlines()
    rows = text[1:12]
    assert {row[13:31].strip() for row in rows} == {"all images", "100 augmented views"[:18], "images as they are"}
    ends = {row.rindex(".") for row in text[1:12]}
    assert len(ends) == 1  # the decimal points of top-5
    assert "distilled with" not in text[0]  # there is one encoder


def test_several_encoders_are_told_apart(many: tuple[Layout, Settings]) -> None:
    text = result_table(many[0])
    assert "distilled with" in text.splitlines()[0]
    full = [row for row in text.splitlines() if "all images" in row and "logistic" in row]
    assert len(full) == 6  # once an encoder, whoever distils


def test_other_programs_get_the_same_lines(plain: tuple[Layout, Settings]) -> None:
    lines = result_lines(plain[0].results / "results.parquet")
    assert json.loads(result_json(plain[0])) == lines
    rows = list(csv.DictReader(io.StringIO(result_csv(plain[0]))))
    assert [row["method"] for row in rows] == [found["method"] for found in lines]
    assert float(rows[1]["top1"]) == lines[1]["top1"]
    assert rows[0]["share_of_full"] == ""


def test_mean_per_class_accuracy_is_in_the_table_where_it_is_another_than_top1() -> None:
    lines = [line(method, protocol, views, top1) for method, protocol, views, top1 in SCORES]
    lines[1]["mean_per_class"] = lines[1]["top1"] + 0.004  # rounding
    assert "mean per class %" not in table_of(lines)
    assert "mean per class %" not in Results({}, lines)._repr_html_()
    lines[1]["mean_per_class"] = 71.25
    header, *rows = table_of(lines).splitlines()
    assert header.split()[-5:] == ["mean", "per", "class", "%", "probes"]
    assert [row.split()[-2] for row in rows[:3]] == ["97.80", "71.25", "49.50"]
    assert ">71.25<" in Results({}, lines)._repr_html_()


def test_other_programs_always_get_the_mean_per_class_accuracy(plain: tuple[Layout, Settings]) -> None:
    rows = json.loads(result_json(plain[0]))
    assert all(row["mean_per_class"] == pytest.approx(row["top1"]) for row in rows)
    assert "mean_per_class" in result_csv(plain[0]).splitlines()[0].split(",")


def test_results_without_mean_per_class_accuracy_still_are_a_table(
    plain: tuple[Layout, Settings], tmp_path: Path
) -> None:
    """Versions before it wrote none."""
    older = pq.ParquetFile(plain[0].results / "results.parquet").read().drop_columns(["mean_per_class"])
    pq.write_table(older, tmp_path / "results.parquet")
    assert {found["mean_per_class"] for found in result_lines(tmp_path / "results.parquet")} == {None}


def with_gains(layout: Layout, folder: Path) -> Path:
    """The results beside a ``metrics.json`` with the gain over random images of one method, under one protocol."""
    gains = {"closed_form-clean": {"over_random": 22.5}, "closed_form-bank-100": {"over_random": -1.25}}
    shutil.copy(layout.results / "results.parquet", folder)
    write_json(folder / "metrics.json", {"clpdd_resnet14": {"clp": gains, "random": {"closed_form-clean": {}}}})
    return folder / "results.parquet"


def test_what_a_set_gains_over_random_images_stands_in_its_line(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    """Once on images as they are, once on augmented views: the two differences that DD-Ranking's scores are made of."""
    lines = result_lines(with_gains(plain[0], tmp_path))
    found = {tuple(line[key] for key in ("method", "protocol", "views")): line["over_random"] for line in lines}
    assert found.pop(("clp", "closed_form", "clean")) == 22.5
    assert found.pop(("clp", "closed_form", "bank-100")) == -1.25
    assert set(found.values()) == {None}
    text = table_of(lines)
    assert "% of full  over random  top-5 %" in text.splitlines()[0]
    assert "  +22.50  " in text
    assert "   -1.25  " in text
    assert "over random: points of top-1 above as many random real images" in text
    assert "<th>over random</th>" in Results({}, lines)._repr_html_()


def test_where_random_images_were_not_judged_nothing_is_said_of_them(plain: tuple[Layout, Settings]) -> None:
    lines = result_lines(plain[0].results / "results.parquet")
    assert {line["over_random"] for line in lines} == {None}
    assert "over random" not in table_of(lines)
    assert "over random" not in Results({}, lines)._repr_html_()


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert aligned([["a", "b"], ["ccc", "1"], ["d", "22"]], left=1) == "a     b\nccc   1\nd    22"
