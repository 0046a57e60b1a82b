"""A quick race of two methods, an ablation without a test split, and rows made up for reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clpdd.benchmark.ablations import plan_ablations
from clpdd.benchmark.plan import Job, plan
from clpdd.benchmark.run import compare
from clpdd.benchmark.table import SCHEMA
from clpdd.config.cache import CacheSettings
from clpdd.config.kernels import KernelSettings
from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.encoders.loading import load_encoder
from clpdd.stages.cache import cache_features
from clpdd.stages.kernels import compute_kernels
from clpdd.stages.project import Project
from clpdd.storage.layout import SPLITS, Layout
from tests.conftest import World
from tests.runs import run_in

QUICK: dict[str, Any] = {
    "distill": {"outer_batch": 32, "extend_every": 2, "random_draws": 2},
    "evaluate": {"epochs": 10},
    "benchmark": {
        "methods": ["clp-no-dsa", "lgm-no-dsa", "full"],
        "steps": 4,
        "halvings": 1,
        "seeds": 1,
        "probe_seeds": 2,
        "views": 2,
    },
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
    table = layout.comparison(world.encoder.name) / f"{judge}.parquet"
    compare(Project(chosen, layout), world.encoder.name, jobs, table, judge=judge, command="clpdd x")
    rows: list[dict[str, Any]] = pq.read_table(table).to_pylist()
    return rows


@dataclass(frozen=True)
class Race:
    layout: Layout
    jobs: list[Job]
    rows: list[dict[str, Any]]


@pytest.fixture(scope="session")
def raced(world: World, tmp_path_factory: pytest.TempPathFactory) -> Race:
    layout = borrowed(world, tmp_path_factory.mktemp("race"), "train", "validation", "test")
    jobs = plan(settings())
    return Race(layout, jobs, race(world, layout, jobs, settings()))


@pytest.fixture(scope="session")
def abroad(world: World, tmp_path_factory: pytest.TempPathFactory) -> Race:
    """A race whose sets are judged at their end with a second encoder too, by ``inherit`` among others."""
    layout = borrowed(world, tmp_path_factory.mktemp("abroad"), "train", "validation", "test")
    options: dict[str, Any] = {"model": world.encoder.name, "image_size": 32}
    second = load_encoder("second", device="cpu", **options)
    for split in SPLITS:
        cache_features(
            layout.index(split), second, CacheSettings(), layout.features("second", split), run_in(layout.work)
        )
    stores = layout.features("second", "train"), layout.features("second", "validation")
    compute_kernels(*stores, KernelSettings(), layout.kernels("second"), run_in(layout.work))
    chosen = parse_settings(
        QUICK
        | {"encoders": [world.encoder.name, "second"], "encoder_options": {"second": options}}
        | {"evaluate": QUICK["evaluate"] | {"protocols": ["closed_form", "inherit"]}}
        | {"benchmark": QUICK["benchmark"] | {"methods": ["clp-no-dsa", "full"], "transfer_to": ["second"]}}
    )
    jobs = plan(chosen)
    return Race(layout, jobs, race(world, layout, jobs, chosen))


@pytest.fixture(scope="session")
def varied(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """An ablation where no file of the test split exists."""
    layout = borrowed(world, tmp_path_factory.mktemp("varied"), "train", "validation")
    chosen = settings(ablations=["decorrelation"], steps=2)
    return race(world, layout, plan_ablations(chosen)[:1], chosen, judge="validation")


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
