"""A copy of the project, small enough to be run many times, and what may be asked of it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

__all__ = ["CHECKPOINT_STEPS", "STAGES", "Project"]

STAGES = ("inputs", "index", "cache", "kernels", "distill clp", "distill real", "evaluate", "report", "between")
"""What a kill can hit; "distill real" are the methods that choose real images, "between" is DVC itself."""

CHECKPOINT_STEPS = 5
_SOURCE = Path(__file__).resolve().parents[2]
_SMALL: dict[str, dict[str, Any]] = {
    "dataset": {"max_per_class": {"train": 20, "validation": 6, "test": 8}},
    "cache": {"batch_size": 8, "chunk_rows": 8, "shard_rows": 24},
    "distill": {
        "steps": 60,
        "augmentations": 1,
        "outer_batch": 64,
        "extend_every": 6,
        "validate_every": 10,
        "preview_every": 1,  # the numbers of the previews tell how far a killed run had come
        "random_draws": 2,
    },
    "evaluate": {"seeds": 2, "epochs": 60, "views": 4},
    "runtime": {
        "device": "cpu",
        "threads": 1,
        "wait_seconds": 120,
        "workers": 1,
        "checkpoint_every_steps": CHECKPOINT_STEPS,
    },
}


class Project:
    """A temporary copy with small settings, run by DVC in process groups of their own.

    ``mark`` is in the environment of every process that comes of it, so that orphans can be found.
    """

    def __init__(self, folder: Path, methods: list[str] | None = None) -> None:
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self.mark = f"clpdd-torture-{os.getpid()}-{random.SystemRandom().randrange(10**9)}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(_SOURCE / "clpdd", folder / "clpdd", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copyfile(_SOURCE / name, folder / name)
        values = yaml.safe_load((_SOURCE / "params.yaml").read_text(encoding="utf-8"))
        for section, small in _SMALL.items():
            values[section].update(small)
        if methods is not None:
            values["methods"] = methods
        (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        self.run("init", "--no-scm", "--quiet")
        self.run("config", "core.check_update", "false")

    @property
    def environment(self) -> dict[str, str]:
        # PYTHONPATH comes before an editable installation: the copy runs, not what is being edited meanwhile.
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            "DVC_NO_ANALYTICS": "1",
            "CLPDD_TORTURE": self.mark,
        }

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """``dvc repro`` as the leader of a new session; everything it says goes to ``log``."""
        with log.open("wb") as sink:
            return subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Ctrl-C is ignored in what a shell runs in the background; here it must arrive.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def run(self, *arguments: str) -> str:
        """A short DVC command; its output. Raises ``CalledProcessError`` when it fails."""
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    def forget(self) -> None:
        """Back to a project that was never run: no artifacts, no partial work, no cache."""
        for path in (self.data, self.folder / ".dvc" / "cache", self.folder / ".dvc" / "tmp"):
            shutil.rmtree(path, ignore_errors=True)
        (self.folder / "dvc.lock").unlink(missing_ok=True)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of ``dvc.lock`` and of every file of every output that it names."""
        lock = self.folder / "dvc.lock"
        stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
        outputs = [self.folder / out["path"] for stage in stages.values() for out in stage["outs"]]
        files = [lock]
        for output in outputs:
            files += [output] if output.is_file() else sorted(p for p in output.rglob("*") if p.is_file())
        return {str(f.relative_to(self.folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

    def recorded(self, stage: str, item: str) -> bool:
        """Whether DVC has recorded the stage that does this item (split names follow encoders in items of cache)."""
        lock = self.folder / "dvc.lock"
        names = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.exists() else {}
        return any(name == stage or (f"{stage}@{item}-").startswith(f"{name}-") for name in names)

    def stale(self) -> list[str]:
        """Temporary files of ours that are still there, anywhere in the project."""
        patterns = (".clpdd-tmp-*", "*.partial")
        return [str(p.relative_to(self.folder)) for pattern in patterns for p in self.folder.rglob(pattern)]

    def processes(self) -> dict[int, list[str]]:
        """Process id -> command line of everything alive that this copy has started."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    line = (entry / "cmdline").read_bytes().split(b"\0")
                    if any(line):  # a zombie has none
                        found[int(entry.name)] = [part.decode(errors="replace") for part in line if part]
            except OSError:
                continue
        return found

    def stage(self, session: int) -> tuple[str, int] | None:
        """The stage that runs in the session, and its process; orphans of an earlier session do not count."""
        for process, line in self.processes().items():
            if _session(process) != session:
                continue
            at = next((i for i, part in enumerate(line) if part.endswith("/clpdd")), None)
            if at is None or len(line) <= at + 1 or line[0].endswith("sh"):
                continue
            name = line[at + 1]
            if name == "distill":
                name = "distill clp" if line[-1] == "clp" else "distill real"
            return name, process
        return None

    def wait_until_quiet(self, seconds: float = 60) -> bool:
        """Whether every process of the copy has ended within the time."""
        deadline = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def _session(process: int) -> int | None:
    try:
        return os.getsid(process)
    except OSError:
        return None
