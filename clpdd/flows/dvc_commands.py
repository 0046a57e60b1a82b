"""DVC as commands in killable process groups: the graph, what is up to date, the work of one stage, its record.

A stage that may have siblings is run in two moves. First its own command, as DVC resolves it, runs directly: it works
in the shared work folder, which a kill does not harm, and holds none of DVC's locks, so that siblings run side by side.
Then, one stage at a time, ``dvc commit`` records what it made; or, if anything it reads was touched meanwhile,
``dvc repro --single-item``, which runs it again. A stage without siblings only needs the latter.
"""

from __future__ import annotations

import contextlib
import enum
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..storage.files import sha256_tree
from ..storage.layout import SPLITS
from .errors import ProjectError, StageBusy, StageError, StageInterrupted, StageRefused, StageStarved, stage_error
from .mend import mend
from .processes import Line, environment, holding, run, stopping

__all__ = [
    "Probe",
    "ProjectError",
    "Stage",
    "StageBusy",
    "StageError",
    "StageInterrupted",
    "StageRefused",
    "StageStarved",
    "changed",
    "forget",
    "has_remote",
    "look",
    "make",
    "probe",
    "push",
    "read_stages",
    "record",
    "run_commands",
    "select",
]

_BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")
_CHATTER = (
    "Generating lock file",
    "Updating lock file",
    "To track the changes with git",
    "git add",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
_HERE = Path(__file__).parent


def _dvc(root: Path, arguments: Sequence[str], on_line: Line, grace: float = 30.0) -> tuple[int, list[str]]:
    """Run ``dvc``, see ``_python``."""
    return _python(root, ["-m", "dvc", *arguments], on_line, grace)


def _python(root: Path, arguments: Sequence[str], on_line: Line, grace: float = 30.0) -> tuple[int, list[str]]:
    """Run Python on something that uses DVC; while another process keeps DVC busy, wait and run it again.

    The other may be a person's ``dvc status``. Files of DVC's own that an earlier kill has cut are removed, and it is
    run again too.
    """
    delay, told = 0.5, False
    while True:
        busy = False

        def line(text: str) -> None:
            nonlocal busy
            busy = busy or any(sign in text for sign in _BUSY)
            on_line(text)

        code, tail = run([sys.executable, *arguments], root, line, grace)
        if code == 0 or stopping():
            return code, tail
        if not busy:
            if not (cut := mend(root)):
                return code, tail
            on_line(f"{' and '.join(cut)} was cut by a kill and is made again")
            continue
        if not told:
            on_line("DVC is busy with a command of someone else's: waiting for it to end")
            told = True
        time.sleep(delay)
        delay = min(delay * 2, 10.0)


def _recording(root: Path) -> contextlib.AbstractContextManager[None]:
    """Our own turn at DVC: its commands never meet each other in one workspace."""
    return holding(root / ".dvc" / "tmp" / "flows-record.lock")


# -- what DVC knows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One stage item of ``dvc.yaml``.

    Attributes:
        name: as DVC addresses it, e.g. ``distill@resnet18-clp``.
        commands: its resolved command lines.
        folder: the absolute folder they run in.
        upstream: names of the stages whose outputs it reads.
        inputs: absolute paths of the files and folders it reads.
        outputs: paths of what it makes.
        always: whether it runs each time (``always_changed`` in ``dvc.yaml``).
    """

    name: str
    commands: tuple[str, ...]
    folder: str
    upstream: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    always: bool = False

    @property
    def group(self) -> str:
        """The stage's name in ``dvc.yaml``: what comes before ``@``."""
        return self.name.split("@")[0]

    @property
    def looks(self) -> bool:
        """Whether it comes before all others, to see what DVC does not."""
        return self.always and not self.upstream


def read_stages(root: Path) -> dict[str, Stage]:
    """Every stage by name, each after those it needs. Raises ``ProjectError`` when DVC cannot read the project."""
    if not (root / "dvc.yaml").is_file():
        raise ProjectError(f"{root} holds no dvc.yaml: run in the project's folder, or name it (--folder)")
    command = [sys.executable, "-P", str(_HERE / "graph.py")]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode and mend(root):
        return read_stages(root)
    if done.returncode:
        raise ProjectError(f"{done.stderr.strip()}; `dvc dag` in {root} tells more")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    parts = ("commands", "upstream", "inputs", "outputs")
    return {row["name"]: Stage(**row | {part: tuple(row[part]) for part in parts}) for row in rows}


def select(stages: dict[str, Stage], targets: Sequence[str], upstream: bool = True) -> dict[str, Stage]:
    """The stages named by ``targets`` (an item ``distill@a``, or all items of ``distill``), with what they need.

    No target means all. ``upstream=False`` keeps the named ones alone. Raises ``ProjectError`` for unknown names.
    """
    if not targets:
        return dict(stages)
    chosen: set[str] = set()
    for target in targets:
        matching = {name for name, stage in stages.items() if target in (name, stage.group)}
        if not matching:
            known = ", ".join(dict.fromkeys([*(stage.group for stage in stages.values()), *stages]))
            raise ProjectError(f"unknown target {target}: known are {known}")
        chosen |= matching
    while upstream and (more := {need for name in chosen for need in stages[name].upstream} - chosen):
        chosen |= more
    return {name: stage for name, stage in stages.items() if name in chosen}


def changed(root: Path, stages: dict[str, Stage]) -> set[str]:
    """Names of the stages that are not up to date, or need one of ``stages`` that is not. One DVC command.

    Stages that look at what DVC does not see must have run before (``look``): they are not among the names, and what
    needs them is judged by what they have written.
    """
    lines: list[str] = []
    with _recording(root):
        code, tail = _dvc(root, ["status", "--json"], lines.append)
    text = "\n".join(lines)
    start = text.find("{")
    if code or start < 0:
        raise ProjectError("dvc status failed:\n" + "\n".join(tail))
    dirty = set(json.JSONDecoder().raw_decode(text[start:])[0])
    result: set[str] = set()
    for name, stage in stages.items():  # in topological order
        if stage.looks:
            continue
        if name in dirty or any(need in result for need in stage.upstream):
            result.add(name)
    return result


def look(root: Path, stage: Stage, on_line: Line, grace: float) -> bool:
    """Run a stage that ``looks``. Returns whether it has written anything new. Raises a ``StageError``."""

    def outputs() -> list[str | None]:
        paths = [root / out for out in stage.outputs]
        return [sha256_tree(path) if path.exists() else None for path in paths]

    before = outputs()
    record(root, stage.name, on_line, grace)
    return outputs() != before


class Probe(enum.Enum):
    """What running a stage through DVC would mean now."""

    UNCHANGED = "unchanged"
    RESTORABLE = "restorable"
    OUTDATED = "outdated"


def probe(root: Path, stage: str) -> Probe:
    """Ask DVC: up to date, in DVC's run cache, or to be made. Its needs must be there already."""
    lines: list[str] = []
    with _recording(root):
        code, tail = _python(root, ["-P", str(_HERE / "standing.py"), stage], lines.append)
    if code:
        raise ProjectError("\n".join(tail))
    return Probe(lines[-1].strip())


def run_commands(stage: Stage, on_line: Line, grace: float) -> None:
    """Run a stage's own commands, without DVC. Raises a ``StageError`` that says whether to run it again."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    flags = ["--noprofile", "--norc"] if Path(shell).name == "bash" else []  # as DVC starts it
    env = environment() | {"DVC_STAGE": stage.name}
    for command in stage.commands:
        code, tail = run([shell, *flags, "-c", command], Path(stage.folder), on_line, grace, env)
        if code:
            raise stage_error(stage.name, code, tail)


def _inputs_now(root: Path, stage: Stage) -> dict[str, tuple[int, int, int]]:
    """What tells whether a file that decides a stage's result was written: its inode, size and time."""
    paths = [root / "dvc.yaml", *(Path(path) for path in stage.inputs)]
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    files = [file for file in files if "__pycache__" not in file.parts]  # .dvcignore leaves them out as well
    found = {str(file): file.stat() for file in files if file.is_file()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def make(root: Path, stage: Stage, on_line: Line, on_record: Line, grace: float, force: bool = False) -> None:
    """Run a stage beside its siblings, then have DVC record it in its turn.

    The command's lines go to ``on_line``, DVC's to ``on_record``. Raises a ``StageError``.
    """
    before = _inputs_now(root, stage)
    run_commands(stage, on_line, grace)
    with _recording(root):
        if _inputs_now(root, stage) == before:
            code, _ = _dvc(root, ["commit", "--force", stage.name], on_record, grace)
            if code == 0:
                return
    # something it reads was written meanwhile, or DVC misses an output: let DVC run it
    record(root, stage.name, on_record, grace, force)


def record(root: Path, stage: str, on_line: Line, grace: float, force: bool = False) -> None:
    """``dvc repro --single-item``: DVC runs the stage, restores it from its cache or finds it unchanged.

    Raises a ``StageError`` by the code of the stage itself; DVC's own is 255 whatever happened.
    """

    def line(text: str) -> None:
        if not text.lstrip().startswith(_CHATTER):
            on_line(text)

    with _recording(root):
        flags = ["--force"] if force else []
        code, tail = _dvc(root, ["repro", "--single-item", *flags, stage], line, grace)
    if code:
        ended = re.search(r"exited with (-?\d+)", "\n".join(tail))
        own = int(ended.group(1)) if ended else code
        raise stage_error(stage, 128 - own if own < 0 else own, tail)


def forget(work: Path, stages: Iterable[Stage]) -> None:
    """Drop what the stages have finished or begun in the work folder, so that they make it anew."""
    for stage in stages:
        item, home = stage.name.partition("@")[2], work / stage.group
        folders = [home / item]
        if stage.group == "cache":
            folders = [home / f"{item}-{split}" for split in SPLITS]
        elif stage.group == "benchmark":  # a folder for every distillation
            folders = list(home.glob(f"{glob.escape(item)}-*"))
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def has_remote(root: Path) -> bool:
    """Whether DVC has a default remote to push to."""
    code, _ = run([sys.executable, "-m", "dvc", "remote", "default"], root, lambda line: None)
    return code == 0  # `dvc config core.remote` ends with 0 where none is set, too


def push(root: Path, on_line: Line) -> None:
    """``dvc push``. Raises ``StageStarved`` when it fails: the remote may be back later."""
    with _recording(root):
        code, tail = _dvc(root, ["push"], on_line)
    if code:
        raise StageStarved("push", code, "to the DVC remote failed", tail)
