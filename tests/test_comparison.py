"""Methods by the clock: fair to both sides, resumable, honest about what it judges on, and readable as a page."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from clpdd.comparison import Job, compare, plan, plan_ablations
from clpdd.comparison import run as runner
from clpdd.comparison.plan import marks_by_clock, marks_by_steps
from clpdd.comparison.readings import accuracy_at, duels, ends, mean_curve, time_to
from clpdd.comparison.table import SCHEMA, table_bytes
from clpdd.comparison.track import BudgetSpent, Track, read_track
from clpdd.config import Settings, parse_settings
from clpdd.errors import ArtifactError, SettingsError
from clpdd.layout import Layout
from clpdd.methods import Snapshot
from clpdd.report.comparison import write_comparison
from tests.browser import asked_schemes, emulate
from tests.conftest import World

ROOT = Path(__file__).parent.parent
QUICK: dict[str, Any] = {
    "distill": {"outer_batch": 32, "extend_every": 2},
    "evaluate": {"epochs": 10, "random_draws": 2},
    "benchmark": {"methods": ["clp-no-dsa", "lgm-no-dsa", "full"], "steps": 4, "halvings": 1, "seeds": 1},
}


def settings(**benchmark: Any) -> Settings:
    return parse_settings(QUICK | {"benchmark": QUICK["benchmark"] | benchmark})


def borrowed(world: World, root: Path, *splits: str) -> Layout:
    """A data folder of its own over the world's artifacts, of the named splits alone."""
    layout, name = Layout(root), world.encoder.name
    paths = [world.layout.kernels(name), *(world.layout.index(split) for split in splits)]
    for path in [*paths, *(world.layout.features(name, split) for split in splits)]:
        place = root / path.relative_to(world.layout.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    return layout


def race(world: World, layout: Layout, jobs: list[Job], chosen: Settings, judge: str = "test") -> list[dict[str, Any]]:
    probes = chosen.evaluate.model_copy(update={"seeds": 2, "views": 2})
    table = layout.comparison(world.encoder.name) / f"{judge}.parquet"
    options = {"name": world.encoder.name, "device": "cpu"}
    compare(jobs, layout, world.encoder, options, probes, chosen.distill, 0, table, judge=judge, command="clpdd x")
    rows: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return rows


@dataclass(frozen=True)
class Race:
    layout: Layout
    jobs: list[Job]
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def raced(world: World, tmp_path_factory: pytest.TempPathFactory) -> Race:
    layout = borrowed(world, tmp_path_factory.mktemp("race"), "train", "validation", "test")
    jobs = plan(settings())
    return Race(layout, jobs, race(world, layout, jobs, settings()))


@pytest.fixture(scope="module")
def varied(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """An ablation where no file of the test split exists."""
    layout = borrowed(world, tmp_path_factory.mktemp("varied"), "train", "validation")
    chosen = settings(ablations=["decorrelation"], steps=2)
    return race(world, layout, plan_ablations(chosen)[:1], chosen, judge="validation")


# -- what is run -------------------------------------------------------------------------------------------------------


def test_the_plan_runs_what_optimises_with_every_seed_and_peers_after_their_reference() -> None:
    names = ["clp", "lgm", "random", "full"]
    jobs = plan(parse_settings({"seed": 3, "benchmark": {"methods": names, "images_per_class": [1, 5], "seeds": 2}}))
    made = [(job.name, job.settings.images_per_class, job.seed) for job in jobs]
    first = [("clp", 1, 3), ("lgm", 1, 3), ("random", 1, 3), ("full", 1, 3), ("clp", 1, 4), ("lgm", 1, 4)]
    assert made == [*first, ("clp", 5, 3), ("lgm", 5, 3), ("random", 5, 3), ("clp", 5, 4), ("lgm", 5, 4)]
    for job in jobs:
        if job.name == "lgm":
            assert job.reference in jobs
            assert job.reference is not None
            assert (job.reference.seed, job.reference.settings.images_per_class) == (
                job.seed,
                job.settings.images_per_class,
            )


@pytest.mark.parametrize(
    ("benchmark", "said"),
    [
        ({"methods": ["lgm"]}, "which methods does not list"),
        ({"methods": ["lgm", "clp"]}, "swap them"),
        ({"methods": ["clpp"]}, r"benchmark.methods: unknown method 'clpp'; did you mean clp\?"),
        ({"images_per_class": [1, 50]}, "raise kernels.nearest to at least 50"),
        ({"encoders": ["vit"]}, "benchmark.encoders names 'vit'"),
        ({"ablations": ["colour"]}, "ablations"),
    ],
)
def test_impossible_comparisons_are_refused(benchmark: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_settings({"benchmark": benchmark})


def test_a_peer_whose_schedule_hangs_on_its_steps_is_refused() -> None:
    own = {"variants": {"lgm": {"schedule": "cosine"}}, "benchmark": {"methods": ["clp", "lgm"]}}
    with pytest.raises(SettingsError, match="schedule constant"):
        plan(parse_settings(own))


def test_marks_halve_towards_the_start_and_double_towards_the_end() -> None:
    assert marks_by_steps(100, 3) == [0, 12, 25, 50, 100]
    assert marks_by_steps(1, 3) == [0, 1]
    assert marks_by_steps(100, None) == [100]
    assert marks_by_clock(8.0, 10, 2) == [2, 4, 8, 16, 32, 64, 80]
    assert marks_by_clock(8.0, 8, 0) == [8, 16, 32, 64]
    assert marks_by_clock(8.0, 1, 1) == [4, 8]


def test_each_choice_differs_from_the_base_in_what_it_says_and_the_same_is_made_once() -> None:
    chosen = parse_settings({"benchmark": {"seeds": 1, "temperatures": [0.05, 0.5], "ridges": [1.0, 3.0]}})
    jobs = plan_ablations(chosen)
    pairs = [pair for job in jobs for pair in job.choices]
    assert len(set(pairs)) == len(pairs)
    assert {group for group, _ in pairs} == set(chosen.benchmark.ablations)
    assert len({job.settings.model_dump_json() for job in jobs}) == len({job.item for job in jobs}) == len(jobs)
    base = next(job for job in jobs if ("objective", "cross-entropy") in job.choices)
    assert {("centring", "by the real mean"), ("temperature_ridge", "0.05 / 3"), ("views", "3 views a step")} <= {
        *base.choices
    }
    one = base.settings.model_dump()
    for job in jobs:
        changed = {key for key, value in job.settings.model_dump().items() if value != one[key]}
        assert len(changed) <= 2, job.choices  # two: temperature with ridge, squared error with the whole set


# -- the track ---------------------------------------------------------------------------------------------------------


def snapshot(step: int, seconds: float) -> Snapshot:
    return Snapshot(step, seconds, torch.full((2, 3, 4, 4), step, dtype=torch.uint8), 10 * step, step)


def test_points_by_the_clock_are_the_first_at_or_after_each_mark(tmp_path: Path) -> None:
    track = Track(tmp_path, [1.0, 2.0, 4.0])
    for step in range(9):
        track(snapshot(step, 0.45 * step))
    with pytest.raises(BudgetSpent):
        track(snapshot(9, 4.05))
    found = read_track(tmp_path)
    assert [(p.step, p.forward) for p in found] == [(0, 0), (3, 30), (5, 50), (9, 90)]
    assert torch.equal(found[1].images, snapshot(3, 0).images)


def test_a_killed_attempts_points_stay_up_to_where_it_is_continued(tmp_path: Path) -> None:
    first = Track(tmp_path, [1.0, 2.0, 4.0])
    for step in (0, 1, 2):
        first(snapshot(step, float(step)))
    again = Track(tmp_path, [1.0, 2.0, 4.0])  # from a checkpoint at step 1, on a slower clock
    again(snapshot(2, 2.5))
    again(snapshot(3, 3.5))
    assert [(p.step, p.seconds) for p in read_track(tmp_path)] == [(0, 0.0), (1, 1.0), (2, 2.5)]


def test_a_damaged_point_is_told(tmp_path: Path) -> None:
    Track(tmp_path)(snapshot(1, 1.0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_track(tmp_path)


# -- the run -----------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_point_under_every_protocol(raced: Race) -> None:
    rows = raced.rows
    kinds = {(r["protocol"], r["views"]) for r in rows if r["name"] == "clp-no-dsa"}
    assert kinds == {("sgd", "bank-2"), ("closed_form", "clean"), ("closed_form", "bank-2")}
    sgd = [r for r in rows if (r["name"], r["protocol"]) == ("clp-no-dsa", "sgd")]
    assert [(r["step"], r["probe_seed"]) for r in sgd] == [(s, p) for s in (0, 2, 4) for p in (0, 1)]
    assert [(r["forward"], r["backward"]) for r in sgd[::2]] == [(10 * s, 10 * s) for s in (0, 2, 4)]
    assert [r["last"] for r in sgd[::2]] == [False, False, True]
    assert json.loads(sgd[0]["changed"])["augmentations"] == 1
    assert json.loads(sgd[0]["versions"])["torch"] == torch.__version__.split("+")[0]
    assert {r["judge"] for r in rows} == {"test"}
    assert {r["step"] for r in rows if r["name"] == "full"} == {None}
    assert {r["protocol"] for r in rows if r["name"] == "full"} == {"closed_form", "logistic"}
    assert all(0 <= r["top1"] <= r["top5"] <= 100 for r in rows)
    # a process of its own: more than its libraries, and no more than a small distillation needs
    assert all(100 < r["idle_memory_mb"] <= r["peak_memory_mb"] for r in rows)


def test_a_peer_is_judged_at_its_references_time_and_has_its_multiple(raced: Race) -> None:
    own = [r for r in raced.rows if r["protocol"] == "sgd" and r["probe_seed"] == 0]
    (end,) = (r["seconds"] for r in own if r["name"] == "clp-no-dsa" and r["last"])
    peer = sorted((r["step"], r["seconds"], r["last"]) for r in own if r["name"] == "lgm-no-dsa")
    marks = marks_by_clock(end, 10.0, 1)
    for mark in marks:  # the first step at or after each mark is there
        step, seconds, _ = next(p for p in peer if p[1] >= mark)
        before = [p for p in peer if p[0] == step - 1]
        assert all(p[1] < mark for p in before)
        assert seconds >= mark
    assert peer[-1][1] >= 10 * end
    assert [last for _, _, last in peer].count(True) == 1
    assert {r["reference"] for r in own if r["name"] == "lgm-no-dsa"} == {"clp-no-dsa"}


def test_what_is_done_is_not_done_again(world: World, raced: Race, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any) -> Any:
        raise AssertionError("made again")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_apart", unwanted)
        patch.setattr(runner, "run", unwanted)
        assert race(world, raced.layout, raced.jobs, settings()) == raced.rows
        other = replace(raced.jobs[0], seed=7)
        with pytest.raises(AssertionError, match="made again"):
            race(world, raced.layout, [other], settings())


def test_ablations_are_judged_on_validation_where_no_test_split_exists(varied: list[dict[str, Any]]) -> None:
    assert {r["judge"] for r in varied} == {"validation"}
    assert {(r["group"], r["choice"]) for r in varied} == {("decorrelation", "decorrelated colours")}
    assert all(r["last"] and r["step"] == 2 for r in varied)


def test_a_killed_comparison_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    borrowed(world, tmp_path / "data", "train", "validation", "test")
    own = QUICK | {
        "distill": {"outer_batch": 32, "checkpoint_every_steps": 10},
        "benchmark": {"methods": ["clp-no-dsa"], "steps": 150, "halvings": 0, "seeds": 1, "views": 2},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(own))
    command = [sys.executable, "-m", "clpdd.cli", "--params", str(tmp_path / "params.yaml")]
    command += ["--data", str(tmp_path / "data"), "benchmark"]
    rooms = tmp_path / "data" / "work" / "benchmark"

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})

    def checkpoints() -> int:
        found = [int(p.stem.split("-")[1]) for p in rooms.glob("*clp*/*/work/distill/*/*/checkpoints/step-*.json")]
        return max(found, default=0)

    def wait_beyond(step: int) -> int:
        deadline = time.monotonic() + 60
        while checkpoints() <= step:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return checkpoints()

    with start() as process:
        wait_beyond(0)
        orphans = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    psutil.wait_procs(orphans, timeout=60)  # left alone, the distillation saves and ends: what comes is the next one's
    reached = checkpoints()
    with start() as process:
        wait_beyond(reached + 10)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 75, said
    assert int(re.findall(r"continuing at step (\d+)", said)[0]) >= reached
    with start() as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 0, said
    assert "continuing at step" in said
    rows = pq.read_table(tmp_path / "data" / "benchmark" / world.encoder.name / "benchmark.parquet").to_pylist()
    assert {(r["name"], r["step"]) for r in rows} == {("clp-no-dsa", 0), ("clp-no-dsa", 150)}
    assert f"--data {tmp_path / 'data'} benchmark --encoder" in rows[0]["command"]
    assert (tmp_path / "data" / "benchmark" / world.encoder.name / "comparison.html").is_file()


# -- what is read off --------------------------------------------------------------------------------------------------

PEER = [(0.0, 10.0), (2.0, 20.0), (4.0, 40.0), (20.0, 30.0)]


def test_accuracy_between_points_is_on_the_line_and_after_the_end_stays() -> None:
    assert [accuracy_at(PEER, x) for x in (0, 1, 2, 3, 12, 20, 1000)] == [10, 15, 20, 30, 35, 30, 30]
    with pytest.raises(ValueError, match="first point is at 2"):
        accuracy_at(PEER[1:], 1.0)


def test_time_to_an_accuracy_is_the_first_crossing() -> None:
    assert [time_to(PEER, y) for y in (5, 10, 15, 30, 40, 41)] == [0, 0, 1, 3, 4, None]


def test_curves_of_several_seeds_meet_at_all_their_points_up_to_the_first_end() -> None:
    met = mean_curve([[(0.0, 10.0), (4.0, 30.0)], [(0.0, 20.0), (2.0, 30.0), (8.0, 60.0)]])
    assert [(x, y.mean, y.runs) for x, y in met] == [(0, 15, 2), (2, 25, 2), (4, 35, 2)]
    assert met[0][1].std == pytest.approx(50**0.5)


def made_rows() -> list[dict[str, Any]]:
    """Two seeds: the reference ends after 4 s (6 s) with 50 % (54 %); the peer gets 40 s (60 s)."""
    plain = dict.fromkeys(SCHEMA.names) | {"draw": 0, "judge": "test", "dataset": "<i>digits</i>", "encoder": "e"}
    plain |= {"protocol": "sgd", "views": "bank-2", "ipc": 1, "machine": "m", "versions": '{"torch": "2"}'}
    plain |= {"command": "clpdd benchmark", "changed": "{}", "fingerprint": "f", "idle_memory_mb": 100.0}
    tracks = {
        ("clp", 0): [(0, 0.0, 30.0), (10, 4.0, 50.0)],
        ("clp", 1): [(0, 0.0, 34.0), (10, 6.0, 54.0)],
        ("lgm", 0): [(0, 0.0, 10.0), (2, 4.0, 20.0), (20, 40.0, 56.0)],
        ("lgm", 1): [(0, 0.0, 10.0), (3, 6.0, 30.0), (30, 60.0, 44.0)],
    }
    rows = [
        plain
        | {"name": name, "method": name, "seed": seed, "step": step, "seconds": seconds, "probe_seed": probe}
        | {"top1": top1 + probe - 0.5, "top5": 100.0, "last": (step, seconds, top1) == track[-1]}
        | {"reference": "clp" if name == "lgm" else None, "peak_memory_mb": 300.0 if name == "lgm" else 200.0}
        | {"forward": step, "backward": step}
        for (name, seed), track in tracks.items()
        for step, seconds, top1 in track
        for probe in (0, 1)
    ]
    still = {"name": "random", "method": "random", "seed": 0, "last": True, "peak_memory_mb": 150.0, "top5": 100.0}
    pairs = [(draw, probe) for draw in (0, 1) for probe in (0, 1)]
    return rows + [plain | still | {"draw": d, "probe_seed": p, "top1": 10.0 + 4 * d + p} for d, p in pairs]


def test_a_duel_is_read_seed_by_seed() -> None:
    (duel,) = duels(made_rows())
    assert (duel.name, duel.reference) == ("lgm", "clp")
    assert (duel.reference_end.mean, duel.reference_seconds.mean) == (52, 5)
    assert (duel.equal.mean, duel.late.mean, duel.factor.mean) == (25, 50, 10)
    assert (duel.lead_equal.mean, duel.lead_late.mean) == (27, 2)
    assert duel.lead_late.std == pytest.approx(128**0.5)  # -6 and 10
    assert duel.reached is not None
    assert (duel.reached.mean, duel.reached.runs) == (34, 1)  # 4 + 36 * 30/36; the other seed never
    assert duel.caught is not None
    assert (duel.caught.mean, duel.caught.runs) == (3, 1)  # 44 on the way from 34 to 54 in 6 s


def test_ends_are_over_distillations_and_draws_and_else_over_probes() -> None:
    rows = made_rows()
    last = ends(rows, lambda row: row["top1"])
    assert (last["clp"].mean, last["clp"].runs) == (52, 2)
    assert (last["random"].mean, last["random"].runs) == (12.5, 2)
    alone = ends([r for r in rows if r["seed"] == 0 and r["draw"] == 0], lambda row: row["top1"])
    assert alone["clp"].std == pytest.approx(0.5**0.5)


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(raced: Race, varied: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    grid = [
        varied[0] | {"group": "temperature_ridge", "choice": f"{t:g} / {r:g}", "top1": 10 * t + r}
        for t in (0.05, 1.0)
        for r in (0.1, 3.0, 10.0)
    ]
    for name, rows in (("a", raced.rows), ("b", made_rows()), ("c", varied + grid)):
        (folder / f"{name}.parquet").write_bytes(table_bytes(rows))
    return write_comparison(sorted(folder.glob("*.parquet")), folder / "page.html")


def test_the_page_tells_the_figures_with_command_machine_and_versions(page: Path) -> None:
    text = page.read_text()
    for said in ("27.0 ± 4.2 below", "10.0 × the time; 2.0 ± 11.3 below", "34 s", "1 of 2 seeds", "clpdd benchmark"):
        assert said in text, said
    assert "torch 2" in text
    assert "Temperature × ridge" in text
    assert "<i>digits</i>" not in text
    assert "&lt;i&gt;digits&lt;/i&gt;" in text
    assert "<script" not in text
    assert set(re.findall(r'(?:src|href)="(\w+):', text)) <= {"https", "data"}
    assert set(re.findall(r'href="(https://[^/"]+)', text)) == {"https://arxiv.org"}


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_holds_together_in_a_browser_and_asks_nobody(browser: Any, page: Path, width: int) -> None:
    emulate(browser, width)
    asked_schemes(browser)
    browser.get(page.as_uri())
    root = "document.documentElement"
    assert browser.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    narrow = "return [...document.querySelectorAll('.plot .area')].filter(a => a.clientWidth < 200).length"
    assert browser.execute_script(narrow) == 0
    assert browser.get_log("browser") == []
    assert asked_schemes(browser) <= {"file", "data", "about"}


@pytest.mark.parametrize("wrong", ["missing", "other table", "no table"])
def test_what_is_no_table_of_a_comparison_is_refused(raced: Race, tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "t.parquet"
    if wrong == "other table":
        pq.write_table(pq.read_table(raced.layout.index("train")), path)
    elif wrong == "no table":
        path.write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=re.escape(str(path))):
        write_comparison([path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
