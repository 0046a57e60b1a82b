"""Evaluations that are repeated or broken off end in the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clpdd.errors import Preempted
from clpdd.runtime.progress import Progress
from clpdd.storage.files import read_json, sha256_file

from .conftest import SETTINGS, World, contents, rows_of


def test_another_run_writes_the_same_bytes(world: World, room: Path, tmp_path: Path) -> None:
    time.sleep(0.01)
    assert contents(world.evaluate(tmp_path)) == contents(room / "results")


def test_clocks_go_to_the_sidecar_alone(room: Path) -> None:
    clocks = read_json(room / "clocks" / "evaluate.json")
    pieces = {(r["distil_encoder"], r["method"], r["eval_encoder"], r["protocol"], r["views"]) for r in clocks["rows"]}
    assert len(pieces) == len(clocks["rows"]) == 3 * 2 * 3 + 2 * 2 * 2
    assert all(r["seconds"] > 0 and r["peak_memory_mb"] > 10 for r in clocks["rows"])
    shared = {json.dumps(r) for r in clocks["rows"] if r["method"] == "full" and r["distil_encoder"] == "two"}
    rest = [r for r in clocks["rows"] if json.dumps(r) not in shared]
    assert clocks["seconds"] == pytest.approx(sum(r["seconds"] - r["shared_seconds"] for r in rest))


def test_encoding_that_two_protocols_share_is_counted_once(world: World, room: Path, tmp_path: Path) -> None:
    rows = read_json(room / "clocks" / "evaluate.json")["rows"]
    shared = {(r["protocol"], r["views"]) for r in rows if r["shared_seconds"] > 0}
    assert shared == {("closed_form", "bank-4")}  # sgd has encoded the bank before it
    begun = time.perf_counter()
    world.evaluate(tmp_path, SETTINGS)
    passed = time.perf_counter() - begun
    assert read_json(tmp_path / "clocks" / "evaluate.json")["seconds"] <= passed  # no more than have passed
    assert "seconds" not in pq.read_table(room / "results" / "results.parquet").column_names
    assert not any(b"second" in data for data in contents(room / "results").values())


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_piece_and_ends_in_the_same_bytes(
    world: World, room: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.evaluation.conftest import open_world\n"
        "open_world(Path(sys.argv[1])).evaluate(Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", script, str(world.root), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(pieces := list((tmp_path / "work").rglob("out/[!.]*.json"))) < 2:  # not those being written
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "results").exists()
    kept = {piece: (piece.stat().st_ino, sha256_file(piece)) for piece in pieces}
    assert contents(world.evaluate(tmp_path)) == contents(room / "results")
    assert {piece: (piece.stat().st_ino, sha256_file(piece)) for piece in kept} == kept


def test_a_run_that_is_asked_to_stop_says_so_and_goes_on_later(world: World, room: Path, tmp_path: Path) -> None:
    def stop_when_it_works() -> None:
        while not (tmp_path / "work" / "evaluate").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_it_works, daemon=True).start()
    with pytest.raises(Preempted, match="SIGTERM"):
        world.evaluate(tmp_path, SETTINGS.model_copy(update={"epochs": 10**6}))
    assert contents(world.evaluate(tmp_path)) == contents(room / "results")


def test_an_altered_piece_is_made_again_and_a_finished_one_is_not(
    world: World, room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(room, tmp_path / "copy")
    pieces = sorted((tmp_path / "copy" / "work").rglob("out/*.json"))
    kept = {piece: piece.stat().st_mtime_ns for piece in pieces[1:]}
    pieces[0].write_text(pieces[0].read_text().replace('"top1":', '"top1":1'))
    assert contents(world.evaluate(tmp_path / "copy")) == contents(room / "results")
    assert "altered" in caplog.text
    assert {piece: piece.stat().st_mtime_ns for piece in kept} == kept


def test_one_more_protocol_leaves_the_pieces_of_the_others(world: World, tmp_path: Path) -> None:
    only = SETTINGS.model_copy(update={"protocols": ["closed_form"]})
    distilled = {("one", "clp"): world.distilled["one", "clp"]}
    world.evaluate(tmp_path, only, distilled=distilled)
    before = {piece: piece.stat().st_mtime_ns for piece in (tmp_path / "work").rglob("out/*.json")}
    world.evaluate(tmp_path, distilled=distilled)
    after = {piece: piece.stat().st_mtime_ns for piece in (tmp_path / "work").rglob("out/*.json")}
    assert len(before) == 4
    assert len(after) == 6
    assert {piece: after[piece] for piece in before} == before


def test_the_order_in_which_draws_and_seeds_are_grouped_does_not_matter(
    world: World, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clpdd.evaluation.subject._GROUP_BYTES", 1)  # every probe alone, its views in float16
    distilled = {("one", "random"): world.distilled["one", "random"]}
    found = rows_of(world.evaluate(tmp_path, distilled=distilled))
    expected = [r for r in rows_of(room / "results") if r["method"] == "random"]
    assert [r["top1"] for r in found] == pytest.approx([r["top1"] for r in expected], abs=4)  # three of 80 images


def test_a_long_probe_is_told_of_while_it_trains(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[int] = []
    monkeypatch.setattr(Progress, "beat", lambda self: beats.append(self.done))
    one = {("one", "clp"): world.distilled["one", "clp"]}
    settings = SETTINGS.model_copy(update={"protocols": ["sgd"], "views": 0})
    encoder = {"one": world.encoders["one"]}
    world.evaluate(tmp_path, settings, distilled=one, encoders=encoder)
    assert beats.count(0) > settings.epochs  # once an epoch at least, before the first probe set is done
