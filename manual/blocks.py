"""The code that the pages show, run as a reader would run it: ``python -m manual.blocks PAGE ...``.

A comment before a fenced block says what to do with it:

- ``<!-- test: python -->``: run it; the blocks of a page share their names, as the cells of a notebook do;
- ``<!-- test: console -->``: run the lines behind ``$``; the others are output, and must be seen (numbers aside);
- ``<!-- test: file NAME -->``: write it to that file; settings (``.yaml``) are checked;
- ``<!-- test: source NAME -->``: a new file of the package: run it as above;
- ``<!-- test: entry NAME:VARIABLE -->``: lines of that catalogue: evaluate them, as entries of a mapping;
- ``<!-- test: changed NAME -->``: sections of a settings file as an addition to the package changes them.

The blocks of a page run in order, in a fresh folder of the page's own. What stands behind ``print(...)  #`` must be
printed. ``clpdd`` commands are called in this process: importing torch anew for each would take most of the time.
The last three kinds say how something is added to the package: ``tests/test_new_entries.py`` does so in a copy of it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Block", "find_blocks", "run_page"]

_ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^<!-- test: (\w+)(?: (\S+))? -->\n```[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block to be tested: ``kind`` as above, the ``name`` of a file, the text, and the line on which it starts."""

    kind: str
    name: str
    text: str
    line: int


def find_blocks(page: str) -> list[Block]:
    """The marked blocks of a page, in order. Raises ``ValueError`` for a mark that marks nothing."""
    found = [
        Block(match[1], match[2] or "", match[3], page.count("\n", 0, match.start(3)) + 1)
        for match in _BLOCK.finditer(page)
    ]
    marks = len(re.findall(r"^<!-- test:", page, re.MULTILINE))
    if marks != len(found):
        raise ValueError(f"{marks} marks, but {len(found)} fenced blocks directly behind one")
    return found


def run_page(page: Path) -> None:
    """Run the marked blocks of a page. Raises what the first one that fails raises, with the line of the page."""
    names: dict[str, Any] = {"__name__": "__main__"}
    blocks = find_blocks(page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks:
            try:
                _RUN[block.kind](block, names)
            except BaseException as error:
                error.add_note(f"in the block on line {block.line} of {page}")
                raise


def _python(block: Block, names: dict[str, Any]) -> None:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(block.text, "<block>", "exec"), names)
    expected = re.findall(r"^\s*print\(.*\)  # (.+)$", block.text, re.MULTILINE)
    _check(output.getvalue(), expected)


def _console(block: Block, names: dict[str, Any]) -> None:
    lines = block.text.splitlines()
    output = "".join(_command(line[2:]) for line in lines if line.startswith("$ "))
    _check(output, [line for line in lines if line.strip() and not line.startswith("$ ")])


def _file(block: Block, names: dict[str, Any]) -> None:
    path = Path(block.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    if path.suffix == ".yaml":
        from clpdd.config.loading import load_settings

        load_settings(path)


def _entry(block: Block, names: dict[str, Any]) -> None:
    path, _, variable = block.name.partition(":")
    catalogue = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    known = getattr(catalogue, variable)
    for name, entry in eval(f"{{{block.text}}}", vars(catalogue)).items():
        if name in known or not isinstance(entry, type(next(iter(known.values())))):
            raise AssertionError(f"{name!r} is no new entry of {variable} in {path}")


def _changed(block: Block, names: dict[str, Any]) -> None:
    unknown = set(yaml.safe_load(block.text)) - set(yaml.safe_load((_ROOT / block.name).read_text(encoding="utf-8")))
    if unknown:
        raise AssertionError(f"{block.name} has no {', '.join(sorted(unknown))}")


_RUN = {
    "python": _python,
    "console": _console,
    "file": _file,
    "source": _python,
    "entry": _entry,
    "changed": _changed,
}


def _command(line: str) -> str:
    """Run one command; its output, both streams."""
    words = shlex.split(line, comments=True)
    if words[0] != "clpdd" or "|" in words:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", line], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{line} left with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr
    target = None
    if ">" in words:
        target, words = words[words.index(">") + 1], words[: words.index(">")]
    output, code = _clpdd(words[1:])
    if code:
        raise RuntimeError(f"{line} left with {code}:\n{output}")
    if target is not None:
        Path(target).write_text(output, encoding="utf-8")
        return ""
    return output


def _clpdd(arguments: Sequence[str]) -> tuple[str, int]:
    from clpdd.cli.main import main

    output = io.StringIO()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [logging.StreamHandler(output)]
    try:
        with contextlib.redirect_stdout(output):
            code = main(list(arguments))
    finally:
        root.handlers = handlers
    return output.getvalue(), code


def _check(output: str, expected: Sequence[str]) -> None:
    seen = _without_numbers(output)
    for line in expected:
        if _without_numbers(line) not in seen:
            raise AssertionError(f"the page shows {line!r}, but the output is:\n{output}")


def _without_numbers(text: str) -> str:
    return re.sub(r" +", " ", re.sub(r"\d+", "0", text))  # columns move with the numbers in them


def main(pages: Sequence[str]) -> int:
    """Run the pages, one after the other; 1 when one fails. Says ``ok PAGE`` or ``failed PAGE`` and why."""
    failed = 0
    for page in pages:
        try:
            run_page(Path(page).resolve())
        except Exception:
            failed = 1
            print(f"failed {page}\n{traceback.format_exc()}", flush=True)
        else:
            print(f"ok {page}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
