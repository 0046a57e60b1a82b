"""The documentation site: generated from the code, complete, and the same without a network."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import clpdd
from clpdd.cli.main import build_parser
from clpdd.config.settings import Settings
from clpdd.config.variants import BUILT_IN
from clpdd.errors import ClpddError
from manual.commands import EXAMPLES, commands, commands_reference
from manual.comments import read_comments
from manual.network import outside_requests
from manual.presets import presets_reference
from manual.settings import entries, settings_reference
from manual.stages import stages_reference
from manual.variants import variants_reference
from tests.browser import asked_schemes, emulate

ROOT = Path(__file__).parent.parent
PARAMS = ROOT / "params.yaml"


def test_every_setting_is_explained() -> None:
    rows = {row.key: row for _, _, section in entries(PARAMS) for row in section}
    assert [key for key, row in rows.items() if not row.meaning] == []
    assert {key.split(".")[0] for key in rows} == set(Settings.model_fields)
    assert rows["distill.temperature"].allowed == "number (> 0) or `auto`"
    assert rows["dataset.max_per_class.train"].allowed == "integer (≥ 1, ≤ 2³¹) or `null`"
    assert rows["distill.schedule"].allowed == "`constant` | `cosine`"
    assert rows["evaluate.augment.flip"].default == "0.5"
    assert rows["evaluate.augment.flip"].written == "0.0"
    assert rows["seed"].written is None


def test_comments_belong_to_the_key_behind_or_below_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# about the file\n\na: 1  # first\n# second,\n# longer\nb:\n  c: {d: 2}  # with # inside\ne: 3\n")
    assert read_comments(path) == {"a": "first", "b": "second, longer", "b.c": "with # inside", "e": ""}


def test_settings_and_commands_have_anchors_and_special_characters_survive() -> None:
    text = settings_reference(PARAMS)
    assert 'id="distill.temperature"' in text
    assert "&lt;= high &lt;= 1" in text
    assert "{#distill.augment}" in text


def test_every_command_and_argument_is_explained() -> None:
    parser = build_parser()
    for name, command in commands(parser):
        unexplained = [action.dest for action in command._actions if not action.help]
        assert unexplained == [], name
    text = commands_reference(parser)
    assert all(f"{{#{name}}}" in text for name, _ in commands(parser))


def test_every_command_has_an_example_that_it_understands() -> None:
    parser = build_parser()
    assert {name for name, _ in commands(parser)} == set(EXAMPLES)
    for name, line in EXAMPLES.items():
        words = shlex.split(line.partition(">")[0])
        assert words[0] == "clpdd"
        assert parser.parse_args(words[1:]).command == name
        assert f"$ {line}\n" in commands_reference(parser)


def test_stages_and_variants_are_those_of_the_pipeline() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    text = stages_reference(ROOT / "dvc.yaml")
    assert [name for name in stages if f"<td><code>{name}</code></td>" not in text] == []
    assert "<code>distilled/ENCODER/METHOD</code>" in text
    assert ".py" not in text
    variants = variants_reference()
    assert [name for name in BUILT_IN if f"<td><code>{name}</code></td>" not in variants] == []
    assert "<code>augment.crop: false</code>" in variants


def test_every_preset_says_what_it_is() -> None:
    files = sorted((ROOT / "clpdd" / "presets").glob("*/*.yaml"))
    assert files
    assert [path.name for path in files if not path.read_text(encoding="utf-8").startswith("# ")] == []
    text = presets_reference(ROOT / "clpdd" / "presets")
    assert all(f"<code>{path.stem}</code>" in text for path in files)


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    raised = {error.exit_code for error in ClpddError.__subclasses__()}
    assert listed == raised | {0, 1, 130}


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.html", '<script src="https://cdn.example/x.js"></script>', ["https://cdn.example/x.js"]),
        ("a.html", '<link rel="stylesheet" href="//fonts.example/f.css">', ["//fonts.example/f.css"]),
        ("a.html", '<img srcset="a.png 1x, http://x.example/b.png 2x">', ["http://x.example/b.png"]),
        ("a.html", "<style>@import 'https://x.example/a.css';</style>", ["https://x.example/a.css"]),
        ("a.html", '<p style="background: url(https://x.example/a.png)">', ["https://x.example/a.png"]),
        ("a.css", "@font-face {src: url('https://x.example/f.woff2')}", ["https://x.example/f.woff2"]),
        ("a.html", '<a href="https://x.example/">x</a><link rel="canonical" href="https://x.example/">', []),
        ("a.html", "<code>url(https://x.example/a.png)</code><img src='a.png'>", []),
    ],
)
def test_what_a_browser_would_fetch_is_found(tmp_path: Path, name: str, text: str, found: list[str]) -> None:
    (tmp_path / name).write_text(text)
    assert outside_requests(tmp_path) == [f"{name}: {address}" for address in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; links, anchors and cross-references that lead nowhere stop the build."""
    pytest.importorskip("mkdocs", reason="the site's tools are an extra: make docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_fetches_nothing_and_names_all_there_is(site: Path) -> None:
    assert outside_requests(site) == []
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert [name for name in clpdd.__all__ if f">{name}</" not in python] == []
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert 'id="distill.learning_rate"' in settings
    assert "generate:" not in settings
    assert "<math" in (site / "method.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [1280, 400])
def test_pages_hold_together_in_a_browser_and_ask_nobody(browser: Any, site: Path, width: int) -> None:
    emulate(browser, width)
    asked_schemes(browser)
    for path in sorted({*site.rglob("*.html")} - {site / "404.html"}):  # only a server shows that one
        browser.get(path.as_uri())
        page = "document.documentElement"
        assert browser.execute_script(f"return {page}.scrollWidth <= {page}.clientWidth"), path.name
        broken = "return [...document.images].filter(i => i.complete && !i.naturalWidth).length"
        assert browser.execute_script(broken) == 0, path.name
        assert browser.get_log("browser") == [], path.name
    assert asked_schemes(browser) <= {"file", "data", "about"}


def test_the_search_works_on_pages_opened_from_disk(browser: Any, site: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    emulate(browser, 1280)
    browser.get((site / "index.html").as_uri())
    box = browser.find_element("css selector", "input.md-search__input")
    box.click()
    box.send_keys("temperature")
    found = WebDriverWait(browser, 20).until(
        lambda page: page.find_elements("css selector", ".md-search-result__link[href*='reference/settings.html']")
    )
    assert found
