"""Group shift: groups walk from the index to the report, are judged by the worst, and no training sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.datasets.index import Index
from clpdd.features.kernels import Kernels
from clpdd.features.store import FeatureStore
from clpdd.probe.linear import Probes
from clpdd.probe.scoring import score
from clpdd.report.results import Results
from clpdd.report.table import result_table
from clpdd.stages.cache import run_cache
from clpdd.stages.distill import run_distill
from clpdd.stages.evaluate import run_evaluate
from clpdd.stages.index import run_index
from clpdd.stages.kernels import run_kernels
from clpdd.stages.project import Project
from clpdd.stages.report import run_report
from clpdd.stages.score import score_table
from clpdd.storage.files import read_json
from clpdd.storage.layout import Layout

from .trees import TREES

METHODS = ["centroid", "full"]


def settings(root: Path) -> Settings:
    return parse_settings(
        {
            "dataset": {"name": "waterbirds", "root": str(root)},
            "methods": METHODS,
            "runtime": {"workers": 0},
            "evaluate": {"seeds": 2, "views": 4, "epochs": 10},
        }
    )


def run(folder: Path, root: Path, through: tuple[str, ...]) -> Project:
    project = Project(settings(root), Layout(folder))
    name = "clpdd_resnet14"
    run_index(project)
    run_cache(project, name)
    run_kernels(project, name)
    for method in METHODS:
        run_distill(project, name, method)
    for stage in through:
        {"evaluate": run_evaluate, "report": run_report}[stage](project)
    return project


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("birds")
    TREES["waterbirds"](root, "waterbirds", 4)
    return root


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, birds: Path) -> Project:
    return run(tmp_path_factory.mktemp("project"), birds, ("evaluate", "report"))


def test_the_worst_group_is_the_lowest_share_of_right_images_of_any_group() -> None:
    guesses = torch.tensor([0, 1, 1, 0, 1, 1, 0, 1])
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 1, 1])
    groups = torch.tensor([0, 2, 1, 0, 2, 1, 1, 2])  # 2 of 2, 0 of 3, 3 of 3 are right
    Z = torch.nn.functional.one_hot(guesses, 2).float()
    probes = Probes(torch.stack([torch.eye(2), 1 - torch.eye(2)]), torch.zeros(2, 2))
    for cut in (1, 3, 8):  # however the rows are cut into blocks
        found = score(probes, zip(Z.split(cut), labels.split(cut), strict=True), groups)
        assert found.groups is not None
        assert found.groups.tolist() == [[100, 0, 100], [0, 100, 0]]
    assert score(probes, [(Z, labels)]).groups is None


def test_groups_reach_the_store_as_they_stand_in_the_index(project: Project) -> None:
    index = Index.open(project.layout.index("test"))
    store = FeatureStore.open(project.layout.features("clpdd_resnet14", "test"))
    assert store.groups == index.groups
    assert set(store.groups or ()) == {f"{bird} on {place}" for bird in ("landbird", "waterbird") for place in PLACES}


PLACES = ("land", "water")


def test_results_hold_the_worst_group_of_every_probe(project: Project) -> None:
    layout = project.layout
    rows = pq.read_table(layout.results / "results.parquet").to_pylist()
    assert all(0 <= row["worst_group"] <= row["top1"] for row in rows)
    # the full-data probe, judged by hand
    store = FeatureStore.open(layout.features("clpdd_resnet14", "test"))
    kernels = Kernels.load(layout.kernels("clpdd_resnet14"))
    right = (store.features() @ kernels.weights + kernels.bias).argmax(1) == store.labels
    shares = {}
    for group in sorted(set(store.groups or ())):
        own = torch.tensor([name == group for name in store.groups or ()])
        shares[group] = 100 * right[own].double().mean().item()
    (row,) = [r for r in rows if r["method"] == "full" and r["protocol"] == "closed_form"]
    assert row["worst_group"] == pytest.approx(min(shares.values()))
    details = read_json(layout.results / "details.json")["rows"]
    (detail,) = [d for d in details if d["method"] == "full" and d["protocol"] == "closed_form"]
    assert detail["groups"] == pytest.approx(shares)
    metrics = read_json(layout.results / "metrics.json")["clpdd_resnet14"]["full"]["closed_form-clean"]
    assert metrics["worst_group"] == pytest.approx(min(shares.values()), abs=1e-4)


def test_table_and_report_show_it_beside_the_mean(project: Project) -> None:
    table = result_table(project.layout)
    assert "worst group %" in table.splitlines()[0]
    page = (project.layout.results / "report.html").read_text()
    assert ">Worst group<" in page
    lines = json.loads((project.layout.results / "report.json").read_text())
    assert "worst_group" in json.dumps(lines)
    assert "worst group %" in Results.of(project.layout)._repr_html_()


def test_score_shows_it_too() -> None:
    row = {"top1": 50.0, "top5": 100.0, "mean_per_class": 50.0}
    facts = {"encoder": "e", "protocol": "sgd", "views": "fresh"}
    text = score_table([facts | {"rows": [row | {"worst_group": 12.5}, row | {"worst_group": 13.5}]}])
    assert "worst group %" in text.splitlines()[0]
    assert text.splitlines()[1].split()[-2:] == ["13.00", "2"]
    assert "worst group" not in score_table([facts | {"rows": [row]}])


def test_no_training_sees_the_groups(project: Project, birds: Path, tmp_path: Path) -> None:
    other = tmp_path / "birds"
    TREES["waterbirds"](other, "waterbirds", 1)  # makes the folders; the images are those of the first
    home = "waterbird_complete95_forest2water2"
    for path in (birds / home).rglob("*.jpg"):
        (other / home / path.relative_to(birds / home)).write_bytes(path.read_bytes())
    lines = (birds / home / "metadata.csv").read_text().splitlines()
    swapped = [",".join([*f[:4], str(1 - int(f[4])), f[5]]) for f in (line.split(",") for line in lines[1:])]
    (other / home / "metadata.csv").write_text("\n".join([lines[0], *swapped]) + "\n")
    again = run(tmp_path / "project", other, ())
    name = "clpdd_resnet14"
    assert Index.open(again.layout.index("train")).groups != Index.open(project.layout.index("train")).groups
    for split in ("train", "validation", "test"):
        stores = [FeatureStore.open(p.layout.features(name, split)) for p in (project, again)]
        assert stores[0].digest == stores[1].digest
    both = [pq.read_table(p.layout.distilled(name, "centroid") / "data.parquet") for p in (project, again)]
    assert both[0].equals(both[1])
