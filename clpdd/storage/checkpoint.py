"""Checkpoints: written whole or not at all, proven by a digest, without pickle."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ..errors import ArtifactError, ResourceError
from .files import read_json, sha256_bytes, sha256_file, write_json
from .tensor_file import write_tensors

__all__ = ["Checkpoint", "load_latest", "save_checkpoint"]

log = logging.getLogger(__name__)

_KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.json")


@dataclass(frozen=True)
class Checkpoint:
    """State after ``step`` steps: named tensors and JSON values."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and keep the last two.

    The tensors go first, the JSON file with their digest last: a checkpoint without its JSON file does not exist.
    They are written as they lie: those on the CPU and contiguous take no further memory.
    """
    stem = f"step-{checkpoint.step:09d}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    digest = write_tensors(folder / f"{stem}.safetensors", tensors)
    values = {"step": checkpoint.step, "tensors": digest, "values": checkpoint.values}
    write_json(folder / f"{stem}.json", {**values, "sha256": _seal(values)})
    # Of steps beyond this one only damaged or abandoned checkpoints can be left: they must not outlive newer ones.
    steps = _steps(folder)
    kept = [step for step in steps if step <= checkpoint.step][-_KEPT:]
    for old in set(steps) - set(kept):
        (folder / f"step-{old:09d}.json").unlink(missing_ok=True)
        (folder / f"step-{old:09d}.safetensors").unlink(missing_ok=True)


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are passed over with a warning. ``None`` when there is none."""
    for step in reversed(_steps(folder)):
        path = folder / f"step-{step:09d}.json"
        try:
            return _load(path)
        except (ArtifactError, OSError, ResourceError) as error:
            log.warning("checkpoint %s cannot be used (%s): falling back to the one before", path, error)
    return None


def _load(path: Path) -> Checkpoint:
    record = read_json(path)
    if not isinstance(record, dict) or record.get("sha256") != _seal(
        {k: v for k, v in record.items() if k != "sha256"}
    ):
        raise ArtifactError("its record does not have the digest it was written with")
    file = path.with_suffix(".safetensors")
    if sha256_file(file) != record["tensors"]:
        raise ArtifactError("its tensors do not have the digest they were written with")
    try:
        with safetensors.safe_open(file, framework="pt") as found:
            # cloned: what the library gives lies in the file, which is to be deleted
            tensors = {name: found.get_tensor(name).clone() for name in found.keys()}  # noqa: SIM118  (no mapping)
        return Checkpoint(record["step"], tensors, record["values"])
    except safetensors.SafetensorError as error:
        raise ArtifactError(str(error)) from error


def _seal(record: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(record, sort_keys=True).encode())


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(found[1]) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))
