"""What was measured, as Markdown to read and JSON to compare, and the machine it was measured on."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

__all__ = ["Section", "machine", "markdown", "save"]


@dataclass
class Section:
    """One table.

    Attributes:
        rows: one list of cells a row, as long as ``columns``; numbers, texts, or ``None`` where nothing was measured.
        notes: sentences below the table.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """Append a row."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: {len(cells)} cells for {len(self.columns)} columns")
        self.rows.append(list(cells))

    def markdown(self) -> str:
        """A heading, the table, the notes."""
        lines = [f"## {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns))]
        lines += [_row([_text(cell) for cell in row]) for row in self.rows]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, bool) or not isinstance(cell, (int, float)):
        return str(cell)
    if isinstance(cell, int) or not math.isfinite(cell) or cell == 0:
        return f"{cell:,}"
    digits = max(0, 2 - math.floor(math.log10(abs(cell))))  # three that matter
    return f"{cell:,.{digits}f}"


def machine(device: torch.device) -> dict[str, Any]:
    """What a reader needs to know to compare; nothing that names the machine."""
    import timm

    facts: dict[str, Any] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    if device.type == "cuda":
        facts |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def markdown(facts: dict[str, Any], command: str, sections: Sequence[Section]) -> str:
    """The whole report."""
    about = ", ".join(f"{key} {value}" for key, value in facts.items())
    return "\n".join([f"```console\n$ {command}\n```\n\n{about}\n", *(section.markdown() for section in sections)])


def save(folder: Path, facts: dict[str, Any], command: str, sections: Sequence[Section]) -> None:
    """Write ``speed.md`` and ``speed.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.md").write_text(markdown(facts, command, sections))
    contents = {"machine": facts, "command": command, "sections": [asdict(section) for section in sections]}
    (folder / "speed.json").write_text(json.dumps(contents, indent=1))
