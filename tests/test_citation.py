"""Who is to be cited: the same papers in the README, for citation managers, and on the page that compares methods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PAPERS = {"2605.07194", "2511.16674", "2602.05391"}  # CLP-DD, LGM, SFM


def entries() -> dict[str, dict[str, str]]:
    """The README's BibTeX: arXiv number -> field -> value in one line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = {}
    for entry in re.findall(r"@article\{.*?\n\}", text, re.DOTALL):
        fields = {name: " ".join(value.split()) for name, value in re.findall(r"(\w+)\s*= \{(.*?)\}[,\n]", entry, re.S)}
        found[fields["journal"].rpartition(":")[2]] = fields
    return found


def test_citation_managers_are_given_the_papers_of_the_readme() -> None:
    given: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    papers = {one["url"].rpartition("/")[2]: one for one in [given["preferred-citation"], *given["references"]]}
    known = entries()
    assert {*papers} == {*known} == PAPERS
    for number, paper in papers.items():
        authors = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
        told = {"title": paper["title"], "author": authors, "journal": paper["journal"], "year": str(paper["year"])}
        assert told == known[number]


def test_the_page_that_compares_methods_links_their_papers() -> None:
    page = (ROOT / "clpdd" / "report" / "templates" / "comparison.html.j2").read_text(encoding="utf-8")
    footer = page.partition("<footer>")[2]
    assert {*re.findall(r'href="https://arxiv\.org/abs/([\d.]+)"', footer)} == PAPERS
