"""Copies of the project in which a real DVC runs the pipeline: what was started in them, and what did work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "ROOT",
    "TINY",
    "Clone",
    "change_settings",
    "copy_project",
    "finished_clone",
    "run",
    "stages_made",
    "stages_run",
]

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

TINY: dict[str, Any] = {
    "dataset.max_per_class": {"train": 6, "validation": 2, "test": 2},
    "kernels.nearest": 2,
    "methods": ["clp", "lgm"],
    "variants": {"lgm": {"steps": 2, "augmentations": 1}},
    "distill.steps": 2,
    "distill.validate_every": 2,
    "distill.preview_every": 2,
    "evaluate.seeds": 1,
    "evaluate.views": 2,
    "evaluate.epochs": 2,
    "runtime.workers": 0,
}
"""Settings of a run in which every stage does its work, and as little of it as can be."""

_TELL_MODULES = '''"""On the path of a copy's processes: notes which modules of the package each has loaded."""
import atexit, json, os, sys


def tell():
    loaded = sorted(name for name in sys.modules if name.split(".")[0] == "clpdd")
    if loaded:
        with open(os.path.join(os.path.dirname(__file__), f"{os.getpid()}.json"), "w") as file:
            json.dump({"arguments": sys.argv[1:], "modules": loaded}, file)


atexit.register(tell)
'''


def run(folder: Path, *command: str, check: bool = True, path: Sequence[Path] = ()) -> str:
    """A command in the copy, with the copy's own code; its output, both streams."""
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, [folder, *path])),
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@example.org",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    output = done.stdout + done.stderr
    assert not check or done.returncode == 0, f"{' '.join(command)} left with {done.returncode}:\n{output}"
    return output


def copy_project(folder: Path, settings: Mapping[str, object]) -> Path:
    """The project's files (committed or not, nothing ignored) in a git repository of their own."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    change_settings(folder, settings)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "copy")
    return folder


def change_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Set dotted keys of the copy's ``params.yaml``."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    for key, value in settings.items():
        *path, last = key.split(".")
        section = params
        for part in path:
            section = section[part]
        section[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def stages_run(output: str) -> list[str]:
    """Stages that DVC says it runs, in order."""
    return re.findall(r"Running stage '([^']+)'", output)


def stages_made(output: str) -> list[str]:
    """The same without ``inputs``, which always looks whether there is anything to do."""
    return [stage for stage in stages_run(output) if stage != "inputs"]


@dataclass(frozen=True)
class Clone:
    """A copy of the project with its artifacts in place."""

    folder: Path

    def copied_to(self, folder: Path) -> Clone:
        """Another one, with everything that lies in this one."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)

    def repro(self, *targets: str) -> str:
        """``dvc repro``; what it says."""
        return run(self.folder, "dvc", "repro", *targets)

    def append(self, file: str, code: str) -> None:
        """Add statements at the end of a source file."""
        with (self.folder / file).open("a", encoding="utf-8") as source:
            source.write(f"\n\n{code}\n")

    @property
    def work(self) -> dict[str, tuple[int, int]]:
        """What was indexed, encoded, solved, distilled or probed, with what tells whether that was done again.

        ``stage/item`` of finished work, ``evaluate/item/protocol`` of trained probes.
        """
        root = self.folder / "data" / "work"
        found = {}
        for path in sorted(root.glob("*/*/*/**/*.json")):
            stage, item, fingerprint, *below = path.relative_to(root).parts
            probes = stage == "evaluate" and len(below) == 2 and below[0] == "out"
            if probes or (stage != "evaluate" and below == ["done.json"]):
                name = f"{stage}/{item}" + (f"/{path.stem}" if probes else "")
                found[name] = int(fingerprint, 16), path.stat().st_mtime_ns
        return found

    def done_since(self, before: Mapping[str, object]) -> list[str]:
        """Names of the work that was done, or done again, since ``work`` was ``before``."""
        return sorted(name for name, marks in self.work.items() if before.get(name) != marks)

    def loaded(self) -> dict[str, set[str]]:
        """The modules of the package that every command of the first run has loaded, by the command's name."""
        found: dict[str, set[str]] = {}
        for note in (self.folder / ".modules").glob("*.json"):
            told = json.loads(note.read_text())
            found.setdefault(told["arguments"][0], set()).update(told["modules"])
        return found


def finished_clone(folder: Path) -> Clone:
    """A copy with the settings ``TINY`` in which ``dvc repro`` has run once."""
    (folder / ".modules").mkdir(parents=True)
    (folder / ".modules" / "sitecustomize.py").write_text(_TELL_MODULES)
    (folder / ".modules" / ".gitignore").write_text("*")
    copy_project(folder, TINY)
    run(folder, "dvc", "repro", path=[folder / ".modules"])
    return Clone(folder)
