"""Bits flipped and files cut in partial work, and the words in which a later run must say that it noticed."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from .project import Project

__all__ = ["Damage", "damage"]


@dataclass
class Damage:
    """One altered file; ``noticed`` once a log holds all of ``words``, written after it was altered.

    ``read`` says how much of each log was there by then. Any log counts: a stage that outlives the DVC that started it
    goes on writing to that one's log.
    """

    kind: str
    file: str
    words: tuple[str, ...]
    noticed: bool = False
    read: dict[Path, int] = field(default_factory=dict)

    def mark(self, logs: Path) -> None:
        """Note how long the logs are: nothing in them so far is about this."""
        self.read = {log: log.stat().st_size for log in logs.glob("*.log")}

    def look(self, logs: Path) -> None:
        """Look through what every log has gained since."""
        for log in sorted(logs.glob("*.log")):
            if not self.noticed:
                text = log.read_bytes()[self.read.get(log, 0) :].decode("utf-8", "replace")
                self.noticed = all(word in text for word in self.words)


def _alter(rng: random.Random, file: Path) -> str:
    before = file.read_bytes()
    while True:
        data = bytearray(before)
        way = rng.choice(("flip", "flip", "cut", "empty"))
        if way == "flip":
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif way == "cut":
            del data[rng.randrange(len(data)) :]
        else:
            data.clear()
        if file.suffix != ".json" or _meaning(data) != _meaning(before):
            break
    # A new file in the old one's place: its content may be shared with the published artifact by a hard link.
    file.unlink()
    file.write_bytes(data)
    return way


def _meaning(data: bytes | bytearray) -> object:
    """A JSON file that lost its last newline, or has 1E5 for 1e5, is not damaged."""
    try:
        return json.loads(data)
    except ValueError:
        return bytes(data)


def damage(rng: random.Random, project: Project, stage: str) -> Damage | None:
    """Alter a file of the partial work that a killed ``stage`` has left, or of what it had finished."""
    work = project.data / "work"
    unfinished = [f.parent for f in work.glob("*/*/*/fingerprint.json") if not (f.parent / "done.json").exists()]
    home = stage.split()[0]
    rooms = sorted(room for room in unfinished if room.parent.parent.name == home)
    if not rooms or rng.random() < 0.2:
        return _damage_finished(rng, project, home)
    room = rng.choice(rooms)
    if home == "distill" and (checkpoints := sorted(room.glob("checkpoints/step-*.json"))):
        newest = checkpoints[-1]
        file = rng.choice((newest, newest.with_suffix(".safetensors")))
        return Damage(f"checkpoint: {_alter(rng, file)}", file.name, (newest.name, "falling back"))
    if home == "cache" and (record := room / "shards.json").exists():
        names = [s for s in sorted(room.glob("out/features.zarr/features/c/*/*")) if not s.name.endswith(".partial")]
        told = record.read_text(encoding="utf-8")
        shards = [s for s in names if f"c/{s.parent.name}/{s.name}" in told]
        if shards:
            file = rng.choice(shards)
            name = f"c/{file.parent.name}/{file.name}"
            return Damage(f"shard: {_alter(rng, file)}", name, ("missing or were altered and are made again",))
    if home == "evaluate" and (pieces := sorted(room.glob("out/[!.]*.json"))):
        file = rng.choice(pieces)
        return Damage(f"evaluation: {_alter(rng, file)}", file.name, (file.name, "it is made again"))
    return None


def _damage_finished(rng: random.Random, project: Project, home: str) -> Damage | None:
    """Alter work that is whole, but of which DVC has not heard yet: it will be asked for again."""
    rooms = [f.parent for f in sorted(project.data.glob(f"work/{home}/*/*/done.json"))]
    rooms = [room for room in rooms if home != "evaluate" and not project.recorded(home, room.parent.name)]
    if not rooms:
        return None
    room = rng.choice(rooms)
    file = rng.choice(sorted(p for p in room.glob("out/**/*") if p.is_file() and p.stat().st_size))
    words = (str(room.relative_to(project.folder)), "was altered since: it is made again")
    return Damage(f"finished work: {_alter(rng, file)}", file.name, words)
