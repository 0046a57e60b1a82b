"""The page of a comparison, as text and in a browser."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clpdd.benchmark.page import read_comparison, write_comparison
from clpdd.benchmark.table import LATER, table_bytes
from clpdd.catalogue.protocols import bound_of
from clpdd.errors import ArtifactError
from tests.browser import asked_schemes, emulate

from .conftest import Race, made_rows


@pytest.fixture(scope="module")
def page(raced: Race, varied: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    grid = [
        varied[0] | {"group": "temperature_ridge", "choice": f"{t:g} / {r:g}", "top1": 10 * t + r}
        for t in (0.05, 1.0)
        for r in (0.1, 3.0, 10.0)
    ]
    abroad = [row | {"dataset": "worth"} for row in worth_rows()]
    abroad += [row | {"eval_encoder": "a_rather_long_name_of_an_encoder.in1k"} for row in abroad if row["last"]]
    for name, rows in (("a", raced.rows), ("b", made_rows()), ("c", varied + grid), ("d", abroad)):
        (folder / f"{name}.parquet").write_bytes(table_bytes(rows))
    return write_comparison(sorted(folder.glob("*.parquet")), folder / "page.html")


def test_the_page_tells_the_figures_with_command_machine_and_versions(page: Path) -> None:
    text = page.read_text()
    for said in ("27.0 ± 4.2 below", "10.0 × the time; 2.0 ± 11.3 below", "34 s", "1 of 2 seeds", "± 0.7 probes"):
        assert said in text, said
    assert "± 2.8 distillations" in text
    assert "clpdd benchmark" in text
    assert "torch 2" in text
    assert "Temperature × ridge" in text
    assert "<i>digits</i>" not in text
    assert "&lt;i&gt;digits&lt;/i&gt;" in text
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="(\w+):', text)) <= {"https", "data"}
    assert set(re.findall(r'href="(https://[^/"]+)', text)) == {"https://arxiv.org"}


def drawn(rows: list[dict[str, Any]], folder: Path) -> str:
    (folder / "t.parquet").write_bytes(table_bytes(rows))
    return write_comparison([folder / "t.parquet"], folder / "page.html").read_text()


def test_the_page_says_which_protocols_are_left_out_and_what_runs_them(tmp_path: Path) -> None:
    text = drawn([row | {"skipped": '["kd", "inherit"]'} for row in made_rows()], tmp_path)
    assert "Left out: <code>inherit</code> and <code>kd</code>" in text
    assert "<code>benchmark.transfer_to</code> names none" in text
    assert "Left out" not in drawn(made_rows(), tmp_path)


def test_tables_without_the_later_columns_are_read_as_null_there(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(table_bytes(made_rows()))
    old = pq.read_table(tmp_path / "t.parquet").drop_columns(list(LATER))
    pq.write_table(old, tmp_path / "old.parquet")
    assert {row[name] for row in read_comparison(tmp_path / "old.parquet") for name in LATER} == {None}
    assert "52.0" in write_comparison([tmp_path / "old.parquet"], tmp_path / "page.html").read_text()


MANY = ["random", "centroid", "herding", "k-medoids", "k-centre", "facility-location", "ridge-greedy"]


def many_rows(top1: list[float]) -> list[dict[str, Any]]:
    """Twelve methods with steps, and ``MANY`` without, at these accuracies."""
    rows = made_rows()
    moving = [row | {"name": f"m{k}", "method": "clp"} for k in range(12) for row in rows if row["name"] == "clp"]
    still = [row for row in rows if row["name"] == "random"]
    return moving + [
        row | {"name": n, "method": n, "top1": y} for n, y in zip(MANY, top1, strict=True) for row in still
    ]


@pytest.mark.parametrize("top1", [[10, 20, 30, 40, 50, 60, 70], [30] * 7, [1, 2, 3, 4, 97, 98, 99]])
def test_levels_are_named_in_their_order_and_no_name_covers_another(top1: list[float], tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(table_bytes(many_rows(top1)))
    page = write_comparison([tmp_path / "t.parquet"], tmp_path / "page.html").read_text()
    names = re.findall(r'<div class="names".*?</div>', page, re.DOTALL)
    assert len(names) == 2  # by time and by steps
    for drawn in names:
        written = [float(at) for at in re.findall(r'<span style="top:([\d.]+)%">', drawn)]
        assert len(written) == len(MANY)
        assert all(later - earlier >= 5.99 for earlier, later in pairwise(written))
        assert 0 <= written[0] <= written[-1] <= 100
    titles = re.findall(r"<b>(.*?)</b>", names[0])
    assert len(set(titles)) == len(MANY)
    if len(set(top1)) == len(MANY):
        assert titles[-1] == "random real images"  # the lowest


def test_twelve_methods_look_different(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(table_bytes(many_rows([10.0] * 7)))
    browser.get(write_comparison([tmp_path / "t.parquet"], tmp_path / "page.html").as_uri())
    look = "getComputedStyle(c).stroke + getComputedStyle(c).strokeDasharray"
    first = "document.querySelector('.plot').querySelectorAll('.c')"
    assert len(set(browser.execute_script(f"return [...{first}].map(c => {look})"))) == 12
    keys = "getComputedStyle(c, '::before').borderTopColor + getComputedStyle(c, '::before').borderTopStyle"
    assert len(set(browser.execute_script(f"return [...document.querySelectorAll('.key li')].map(c => {keys})"))) == 12


def worth_rows() -> list[dict[str, Any]]:
    """Closed form on images as they are: 52 % by one image per class, 64 % by ten; random ones reach 40, 60 and 70."""
    curves = json.dumps({"random": [[1, 40.0], [10, 60.0], [20, 70.0]], "herding": [[1, 53.0], [10, 65.0]]})
    rows = [row | {"protocol": "closed_form", "views": "clean", "few_shot": curves} for row in made_rows()]
    many = [row | {"ipc": 10, "top1": row["top1"] + 12} for row in rows if row["name"] == "clp"]
    full = [row | {"name": "full", "method": "full", "ipc": None, "top1": 90.0} for row in rows if row["draw"] == 1]
    return rows + many + full


def test_sets_are_told_in_real_images_on_their_few_shot_curve(tmp_path: Path) -> None:
    text = drawn(worth_rows(), tmp_path)
    assert "what the sets are worth in real images" in text
    table = text[text.index('aria-label="Worth in real images"') :]
    lines = [re.sub(r"<[^>]+>", " ", line).split() for line in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    assert any(line[:2] == ["CLP-DD", "1"] and line[-2:] == ["4.0", "&lt;1"] for line in lines), lines
    assert any(line[:2] == ["CLP-DD", "10"] and line[-2:] == ["13.2", "8.3"] for line in lines), lines
    chart = text[text.index("what the sets are worth") : text.index('aria-label="Worth in real images"')]
    for named in ("real images drawn at random", "real images chosen by herding", "all training images", ">20</span>"):
        assert named in chart, named
    assert "what the sets are worth" not in drawn(made_rows(), tmp_path)
    assert "what the sets are worth" not in drawn([row | {"few_shot": None} for row in worth_rows()], tmp_path)


def test_sets_judged_elsewhere_are_told_apart_from_those_of_the_race(tmp_path: Path) -> None:
    ends = [row | {"protocol": "inherit", "eval_encoder": "f"} for row in made_rows() if row["last"]]
    ends = [row | {"top1": row["top1"] / 2} for row in ends if row["name"] == "clp"]
    back = [row | {"encoder": "f", "eval_encoder": "e", "top1": 33.0} for row in ends]
    bound = ends[0] | {"name": "full", "method": "full", "protocol": bound_of("inherit"), "ipc": None, "top1": 65.0}
    text = drawn([*made_rows(), *ends, bound, *back], tmp_path)
    transfer = text[text.index("From one encoder to another") :]
    assert "26.0 (40 %)" in transfer  # half of 52, of 65
    assert "33.0" in transfer
    race = text[: text.index("From one encoder to another")]
    assert "52.0" in race
    assert "26.0" not in race
    assert "From one encoder to another" not in drawn(made_rows(), tmp_path)


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_holds_together_in_a_browser_and_asks_nobody(browser: Any, page: Path, width: int) -> None:
    emulate(browser, width)
    asked_schemes(browser)
    browser.get(page.as_uri())
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    narrow = (
        "return [...document.querySelectorAll('.plot .area')].filter(a => a.clientWidth < 200)"
        ".map(a => [a.clientWidth, a.parentElement.innerText])"
    )
    assert browser.execute_script(narrow) == []
    assert browser.get_log("browser") == []
    assert asked_schemes(browser) <= {"file", "data", "about"}


@pytest.mark.parametrize("wrong", ["missing", "other table", "no table"])
def test_what_is_no_table_of_a_comparison_is_refused(raced: Race, tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "t.parquet"
    if wrong == "other table":
        pq.write_table(pq.read_table(raced.layout.index("train")), path)
    elif wrong == "no table":
        path.write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        write_comparison([path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
