"""The work folder: where partial work lives until it is whole.

A stage's outputs are plain DVC outputs, which DVC deletes before the stage runs. Partial work therefore lives in
``<data>/work/<stage>/<item>/<fingerprint>/``, keyed by the fingerprint of everything that decides the result and
held by an ``flock``. A finished artifact is linked from there into its place; it stays in the work folder too, so
a run killed between finishing and DVC's recording of it has nothing to do again.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import ArtifactError, BusyError, ResourceError
from ..runtime.machine import peak_memory_mb
from .files import (
    canonical_json,
    explain_os_errors,
    publish,
    read_json,
    remove,
    remove_leftovers,
    sha256_bytes,
    sha256_tree,
    write_json,
)

__all__ = ["FORMAT", "WorkFolder", "differences", "exclusive", "fingerprint", "item_name", "lock", "versions"]

log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the layout of partial work: raised when older partial work must not be continued."""


def versions() -> dict[str, str]:
    """Versions of what decides the last bits of a result."""
    packages = ("torch", "timm", "numpy", "pillow", "zarr", "pyarrow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def fingerprint(**deciding: Any) -> dict[str, Any]:
    """The record of everything that decides a stage's bytes: settings, digests of inputs, code, device.

    ``deciding`` must hold JSON values. Versions of the libraries and of the work folder's format are added.
    """
    return {"format": FORMAT, "versions": versions(), **deciding}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs: dict[str, Any] = {}
        for key, inner in value.items():
            pairs |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return pairs
    return {prefix: value}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 4) -> str:
    """What differs between two nested records, in words: ``"seed was 0, is 1"``."""
    one, other = _flat(old), _flat(new)
    changed = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    told = [f"{key} was {_short(one.get(key))}, is {_short(other.get(key))}" for key in changed[:limit]]
    if len(changed) > limit:
        told.append(f"and {len(changed) - limit} more")
    return "; ".join(told)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:18] + "..." + text[-8:]


@contextlib.contextmanager
def exclusive(root: Path | str, stage: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a whole stage, below the work ``root``, for the length of the block.

    Raises ``BusyError`` when another live process holds it after ``wait`` seconds.
    """
    home = Path(root) / stage
    with explain_os_errors("use the work folder", home):
        home.mkdir(parents=True, exist_ok=True)
        descriptor = lock(home, stage, wait)
    try:
        yield
    finally:
        os.close(descriptor)


def lock(home: Path, what: str, wait: float) -> int:
    """A descriptor that holds ``home`` until it is closed, by whatever end of the process."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise BusyError(
                    f"{what} is already running (process {holder}): wait for it to end, or stop it; nothing was changed"
                ) from None
            if not told:
                log.info("waiting for process %s, which is running %s", holder, what)
                told = True
            time.sleep(0.2)
    with contextlib.suppress(OSError):  # the number is a courtesy to others: a full disk must not stop us here
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def item_name(item: str) -> str:
    """An item as files and clock readings call it: names of encoders may hold slashes and colons."""
    return item.replace("/", "-").replace(":", "-")


class WorkFolder:
    """An exclusive, resumable folder for one item of one stage.

    Use as a context manager. ``path`` is private to the stage; what the stage wants published goes to ``out``.
    Clock and memory readings of finished work go to ``clocks/<stage>-<item>.json``.

    Args:
        root: the work root, ``<data>/work``.
        stage: stage name, e.g. ``"distill"``.
        item: which one of the stage's items, e.g. ``"resnet10t/clp"``; slashes become dashes.
        record: of ``fingerprint``.
        wait: seconds to wait for another run holding the same item before ``BusyError``; 0 means not at all.
        clocks: folder that takes the readings of finished work; ``None``: ``clocks`` beside ``root``.

    Raises:
        BusyError: another live process holds the item.
        ResourceError: the folder cannot be created or locked.
    """

    def __init__(
        self,
        root: Path | str,
        stage: str,
        item: str,
        record: Mapping[str, Any],
        *,
        wait: float = 0.0,
        clocks: Path | None = None,
    ) -> None:
        self.record = dict(record)
        self.digest = sha256_bytes(canonical_json(self.record).encode())[:16]
        self.stage, self.item = stage, item_name(item)
        self.home = Path(root) / stage / self.item
        self.path = self.home / self.digest
        self.out = self.path / "out"
        self.wait = wait
        self.clocks = Path(root).parent / "clocks" if clocks is None else clocks
        self._notes: dict[str, float] = {}
        self._lock: int | None = None

    def __enter__(self) -> Self:
        with explain_os_errors("use the work folder", self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.home, f"{self.stage} of {self.item}", self.wait)
        try:
            self._open()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _open(self) -> None:
        with explain_os_errors("use the work folder", self.home):
            self._tell_about_others()
            self.path.mkdir(exist_ok=True)
            remove_leftovers(self.path)
        if not (self.path / "fingerprint.json").exists():
            write_json(self.path / "fingerprint.json", self.record)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _others(self) -> list[Path]:
        return sorted(p for p in self.home.iterdir() if p.is_dir() and p != self.path)

    def _tell_about_others(self) -> None:
        if self.path.exists():
            return
        unfinished = [p for p in self._others() if not (p / "done.json").exists() and (p / "fingerprint.json").exists()]
        if not unfinished:
            return
        newest = max(unfinished, key=lambda p: p.stat().st_mtime)
        try:
            why = differences(read_json(newest / "fingerprint.json"), self.record)
        except ArtifactError:
            why = "its fingerprint is damaged"
        log.warning(
            "partial work of %s in %s belongs to other settings and is set aside, not used (%s)",
            self.stage,
            newest,
            why,
        )

    # -- finished work ---------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether ``out`` is whole and still what it was when it was finished (its digest is checked)."""
        try:
            done = read_json(self.path / "done.json")
            if done.get("sha256") == sha256_tree(self.out):
                return True
        except ArtifactError:
            if not (self.path / "done.json").exists():
                return False
        log.warning("finished work in %s was altered since: it is made again", self.path)
        remove(self.path / "done.json")
        remove(self.out)
        return False

    def finish(self, discard: tuple[str, ...] = ()) -> None:
        """Declare ``out`` whole, drop the named private files, and drop older finished work of this item."""
        write_json(self.path / "done.json", {"sha256": sha256_tree(self.out)})
        for name in discard:
            remove(self.path / name)
        for other in self._others():
            if (other / "done.json").exists():
                remove(other)

    def publish(self, targets: Mapping[str, Path]) -> None:
        """Link ``out/<name>`` into place for every ``name -> target`` pair."""
        for name, target in targets.items():
            publish(self.out / name, target)

    def note(self, **readings: float) -> None:
        """Further readings of this attempt, to stand beside its seconds and memory."""
        self._notes |= readings

    def _read_clock(self, seconds: float) -> None:
        """Note time (summed over attempts that could say so) and memory beside the data, in no artifact.

        Two runs of the same work differ in them, and artifacts must not.
        """
        path = self.path / "clock.json"
        before = {"seconds": 0.0, "attempts": 0, "peak_memory_mb": 0.0}
        with contextlib.suppress(ArtifactError, TypeError, ValueError):  # missing or damaged: counted from here on
            before |= read_json(path)
        reading = {
            "stage": self.stage,
            "item": self.item,
            "device": self.record.get("device", "cpu"),
            "seconds": before["seconds"] + seconds,
            "attempts": before["attempts"] + 1,
            "peak_memory_mb": max(before["peak_memory_mb"], peak_memory_mb()),
            **self._notes,
        }
        write_json(path, reading)
        if (self.path / "done.json").exists():
            write_json(self.clocks / f"{self.stage}-{self.item}.json", reading)

    def forget(self) -> None:
        """Drop finished work: it is to be made again."""
        remove(self.path / "done.json")
        remove(self.out)

    def produce(
        self,
        make: Callable[[], None],
        targets: Mapping[str, Path],
        discard: tuple[str, ...] = (),
        *,
        together: bool = False,
        check: Callable[[], None] | None = None,
    ) -> bool:
        """Make ``out`` unless it is finished already, then publish it. Returns whether anything was made.

        Args:
            make: leaves everything named in ``targets`` in ``out``; it may find partial work of an earlier, killed
                attempt in ``path``.
            targets: name in ``out`` -> where it is published.
            discard: private files that finished work does not need.
            together: targets belong to each other, so old ones go first; a run killed here leaves gaps, no mixture.
            check: called before finished work is published again; what it raises leaves the targets as they are.
        """
        made = not self.finished
        if made:
            self.out.mkdir(parents=True, exist_ok=True)
            begun = time.monotonic()
            try:
                make()
                self.finish(discard)
            finally:
                # A reading that cannot be written neither stops the work nor hides the error that did.
                with contextlib.suppress(ResourceError):
                    self._read_clock(time.monotonic() - begun)
        else:
            if check is not None:
                check()
            for name in discard:  # left by a run that was killed while it dropped them
                remove(self.path / name)
            log.info("%s of %s is already done in %s: published again", self.stage, self.item, self.path)
        if together:
            for target in targets.values():
                remove(target)
        self.publish(targets)
        return made
