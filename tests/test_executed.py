"""The executed notebook of the documentation: a real kernel gives what it shows."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from manual.notebook import NOTEBOOK, notebook_page, stale

ROOT = Path(__file__).parent.parent
SHOWN: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_real_kernel_gives_what_the_notebook_shows() -> None:
    pytest.importorskip("nbclient", reason="an extra: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="an extra: pip install nbclient ipykernel")
    done = subprocess.run(
        [sys.executable, "-m", "manual.notebook", "--check"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_cell_was_executed_in_order_and_says_nothing_of_the_machine() -> None:
    cells = [cell for cell in SHOWN["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
    text = json.dumps(SHOWN)
    assert "Traceback" not in text
    assert str(ROOT) not in text
    assert len(text) < 600_000


def test_the_page_shows_all_of_it() -> None:
    page = notebook_page()
    assert page.startswith("# In a notebook")
    assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in SHOWN["cells"])
    assert page.count("data:image/png;base64,") == 3  # the set, its images with names, accuracies
    assert "<style" not in page


def test_other_numbers_are_no_news_and_other_words_are() -> None:
    other = copy.deepcopy(SHOWN)
    output = next(
        out for cell in other["cells"] for out in cell.get("outputs", []) if "text/html" in out.get("data", {})
    )
    output["data"]["text/html"] = "".join(output["data"]["text/html"]).replace("1,259", "1,300")
    assert stale(SHOWN, other) == []
    output["data"]["text/html"] = output["data"]["text/html"].replace("encoder", "network")
    assert len(stale(SHOWN, other)) == 1
