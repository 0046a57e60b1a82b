"""The pages: what they show runs, and what they link to is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from manual.blocks import find_blocks, run_page

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TESTED = [page for page in PAGES if "<!-- test:" in page.read_text(encoding="utf-8")]
MARK = "<!-- test: {} -->\n"


@pytest.fixture(scope="module")
def outcomes() -> str:
    """What running all pages says. One process for all: importing torch would otherwise take most of the time."""
    done = subprocess.run(
        [sys.executable, "-m", "manual.blocks", *map(str, TESTED)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", TESTED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_that_a_page_shows_runs(outcomes: str, page: Path) -> None:
    assert f"ok {page}\n" in outcomes, outcomes


def test_the_front_door_and_the_tutorial_are_among_the_pages_that_run() -> None:
    assert {"README.md", "docs/tutorial/own-images.md"} <= {page.relative_to(ROOT).as_posix() for page in TESTED}


def test_links_between_files_lead_somewhere() -> None:
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.exists(), f"{page}: {target}"
            if anchor and file.suffix == ".md" and "<!-- generate:" not in file.read_text(encoding="utf-8"):
                assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page}: {target}"


def anchors(page: str) -> set[str]:
    """Of headings, as GitHub and MkDocs make them."""
    heads = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", head.lower())) for head in heads}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (MARK.format("python") + "```python\nassert 1 == 2\n```\n", "AssertionError"),
        (MARK.format("python") + "```python\nprint(2 + 2)  # five\n```\n", "the page shows 'five'"),
        (MARK.format("console") + "```console\n$ false\n```\n", "left with 1"),
        (MARK.format("console") + "```console\n$ echo yes\nno\n```\n", "the page shows 'no'"),
        (MARK.format("console") + "```console\n$ clpdd index --speed\n```\n", "SystemExit"),
        (MARK.format("file params.yaml") + "```yaml\nseeed: 1\n```\n", "did you mean seed?"),
        (
            MARK.format("entry clpdd/catalogue/methods.py:METHODS")
            + '```python\n"clp": MethodEntry(implementation="a:B", title="a"),\n```\n',
            "'clp' is no new entry of METHODS",
        ),
        (MARK.format("changed params.yaml") + "```yaml\nseeed: 1\n```\n", "params.yaml has no seeed"),
    ],
)
def test_a_block_that_is_wrong_fails_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n" + text)
    with pytest.raises(BaseException) as failed:
        run_page(page)
    assert told in f"{failed.type.__name__}: {failed.value}"
    assert failed.value.__notes__ == [f"in the block on line 5 of {page}"]


def test_blocks_share_names_and_folder_and_numbers_may_differ(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    parts = [
        MARK.format("file a/b.txt") + "```text\nseven\n```\n",
        MARK.format("python") + "```python\ntext = open('a/b.txt').read()\n```\n",
        MARK.format("python") + "```python\nprint(text, 123)  # 9\n```\n",
        MARK.format("console") + "```console\n$ wc -c a/b.txt\n6 a/b.txt\n```\n",
    ]
    page.write_text("\n".join(parts))
    run_page(page)


def test_a_mark_without_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="1 marks, but 0 fenced blocks"):
        find_blocks(MARK.format("python") + "\n```python\nx\n```\n")
