"""Checkpoints: whole or not there, damage noticed, the one before taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clpdd.storage.checkpoint import Checkpoint, load_latest, save_checkpoint


def make(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {"level.0": torch.randn(3, 4, generator=generator), "adam.0.step": torch.tensor(float(step))}
    return Checkpoint(step, tensors, {"losses": [0.1 * step, 1e-17], "best": [step, 12.5]})


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and (one.step, one.values) == (other.step, other.values)
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(one.tensors[k], other.tensors[k]) for k in other.tensors)
    )


def test_round_trip_is_exact_and_the_last_two_are_kept(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "nothing") is None
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, make(step))
    assert same(load_latest(tmp_path), make(15))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:09d}.{kind}" for step in (10, 15) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_noticed_and_the_one_before_is_taken(
    tmp_path: Path, kind: str, place: float, bit: int, cut: bool
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, make(step))
    path = tmp_path / f"step-000000002.{kind}"
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    if cut:
        data = data[:at]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(data)
    loaded = load_latest(tmp_path)
    # Damage to blanks of the JSON file changes nothing that it says.
    assert same(loaded, make(1)) or (kind == "json" and same(loaded, make(2)))


def test_tensors_without_their_record_do_not_exist(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(1))
    save_checkpoint(tmp_path, make(2))
    (tmp_path / "step-000000002.json").unlink()
    assert same(load_latest(tmp_path), make(1))


def test_newer_damaged_checkpoints_do_not_outlive_new_whole_ones(tmp_path: Path) -> None:
    for step in (300, 400):
        save_checkpoint(tmp_path, make(step))
        (tmp_path / f"step-{step:09d}.safetensors").write_bytes(b"")
    save_checkpoint(tmp_path, make(100))
    assert same(load_latest(tmp_path), make(100))


def test_all_damaged_means_starting_afresh(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path, make(1))
    (tmp_path / "step-000000001.safetensors").write_bytes(b"")
    assert load_latest(tmp_path) is None
    assert "falling back" in caplog.text
