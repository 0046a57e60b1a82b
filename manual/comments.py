"""What ``params.yaml`` says about each setting: its value there and its comment."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["read_comments"]

_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_]+):(?P<value>.*?)(?:\s+#\s?(?P<comment>.*))?$")


def read_comments(path: Path) -> dict[str, str]:
    """Dotted key -> comment: the lines directly above the key, then the one behind its value; ``""`` without any."""
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.strip().removeprefix("#").strip())
            continue
        found = _LINE.match(line)
        if found is None:  # a comment that a blank line sets apart is about no key
            above = []
            continue
        indent = len(found["indent"])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        parents.append((indent, found["key"]))
        parts = [" ".join(above), (found["comment"] or "").strip()]
        comments[".".join(key for _, key in parents)] = "; ".join(part for part in parts if part)
        above = []
    return comments
