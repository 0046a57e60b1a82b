"""Hooks of MkDocs (``mkdocs.yml`` names this file): generated parts, equations, and no request to any other host.

MkDocs is started as ``python -m mkdocs`` in the project's folder, so that this package is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

from clpdd.cli.main import build_parser
from clpdd.datasets.index import SCHEMA as INDEX
from clpdd.evaluation.tables import SCHEMA as RESULTS
from manual.api import api_reference
from manual.columns import columns
from manual.commands import commands_reference
from manual.equations import draw_equations
from manual.network import outside_requests
from manual.notebook import notebook_page
from manual.presets import presets_reference
from manual.settings import settings_reference
from manual.stages import stages_reference
from manual.variants import variants_reference

ROOT = Path(__file__).parent.parent

GENERATED: dict[str, Callable[[], str]] = {
    "settings": lambda: settings_reference(ROOT / "params.yaml"),
    "commands": lambda: commands_reference(build_parser()),
    "python": api_reference,
    "notebook": notebook_page,
    "index-columns": lambda: columns(INDEX),
    "results-columns": lambda: columns(RESULTS),
    "presets": lambda: presets_reference(ROOT / "clpdd" / "presets"),
    "stages": lambda: stages_reference(ROOT / "dvc.yaml"),
    "variants": variants_reference,
}
"""What ``<!-- generate: NAME -->`` in a page becomes."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the generated parts. Raises ``PluginError`` for a name that nothing generates."""

    def fill(found: re.Match[str]) -> str:
        if found[1] not in GENERATED:
            raise PluginError(f"{page.file.src_uri}: nothing generates {found[1]!r}; known are {', '.join(GENERATED)}")
        return GENERATED[found[1]]()

    return re.sub(r"<!-- generate: (\S+) -->", fill, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Draw the equations."""
    return draw_equations(html)


def on_post_build(config: Any, **_: Any) -> None:
    """Refuse a site that would fetch anything from elsewhere: it is read on machines without a connection."""
    found = outside_requests(Path(config["site_dir"]))
    if found:
        raise PluginError("the site would fetch from other hosts: " + "; ".join(found))
