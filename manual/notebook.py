"""The executed notebook of the documentation: run, compared with what it shows, and shown as a page.

``python -m manual.notebook`` runs ``docs/tutorial/notebook.ipynb`` in a real kernel and writes what its cells give into
it; with ``--check`` it compares that with what is there, numbers and pictures' bytes aside, and leaves with 1 where
they differ. Both need nbclient and ipykernel; showing the page needs neither.
"""

from __future__ import annotations

import html
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["NOTEBOOK", "notebook_page", "run_notebook", "stale"]

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial" / "notebook.ipynb"


def notebook_page(path: Path = NOTEBOOK) -> str:
    """The notebook as Markdown: prose, code, and the richest form of every output."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *(_shown(output) for output in cell["outputs"])]
    return "\n\n".join(parts)


def _shown(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = {kind: "".join(value) for kind, value in output["data"].items()}
    if "text/html" in data:  # without its blank lines, behind which Markdown would take it for text
        plain = re.sub(r"<style.*?</style>|\n\s*", "", data["text/html"], flags=re.DOTALL)
        return f'<div class="output" markdown="0">{plain}</div>'
    if "image/png" in data:
        text = html.escape(data.get("text/plain", "figure"))
        return f'<img alt="{text}" src="data:image/png;base64,{data["image/png"].strip()}">'
    return f"```text\n{data['text/plain']}\n```"


def run_notebook(path: Path = NOTEBOOK) -> dict[str, Any]:
    """The notebook with the outputs of a real kernel, in a fresh folder. Raises what the first failing cell raises."""
    import nbclient  # an extra, and one that only this function needs
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", record_timing=False, resources=where
        ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what goes to stderr is how far things are, which differs from run to run
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    made: dict[str, Any] = json.loads(nbformat.writes(notebook))
    made["metadata"] = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    made["metadata"] |= {"language_info": {"name": "python"}}
    return made


def stale(shown: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """In words, cells whose outputs are not those that are shown; numbers and pictures may differ."""
    pairs = zip(shown["cells"], made["cells"], strict=True)
    return [
        f"cell {number} shows {_essence(old)} and gives {_essence(new)}"
        for number, (old, new) in enumerate(pairs, start=1)
        if old["cell_type"] == "code" and _essence(old) != _essence(new)
    ]


def _essence(cell: dict[str, Any]) -> list[dict[str, str]]:
    """What must be as it was of a cell's outputs: their kinds and their words."""
    found = []
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        words = {kind: _words("".join(text)) for kind, text in data.items() if kind.startswith("text/")}
        found.append({kind: words.get(kind, "") for kind in sorted(data)})
    return found


def _words(text: str) -> str:
    """Text without numbers, bytes of pictures, rulers and what columns are padded with."""
    text = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64", text)
    return re.sub(r"[\s─-]+", " ", re.sub(r"[\d.,]+(e[+-]?\d+)?", "0", text))


def main(arguments: Sequence[str]) -> int:
    """Run the notebook; 1 when ``--check`` is asked for and it does not give what it shows."""
    shown, made = json.loads(NOTEBOOK.read_text(encoding="utf-8")), run_notebook()
    if "--check" in arguments:
        differing = stale(shown, made)
        print("\n".join(differing) or f"{NOTEBOOK} gives what it shows")
        return int(bool(differing))
    NOTEBOOK.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
