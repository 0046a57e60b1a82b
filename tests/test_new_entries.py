"""The how-to pages, followed to the letter: what they add runs, and nothing that was made before is made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from manual.blocks import Block, find_blocks

from .clones import ROOT, Clone, change_settings, run, stages_made


def blocks(page: str) -> list[Block]:
    return find_blocks((ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8"))


def add(clone: Clone, page: str) -> None:
    """Write the page's new file and enter its lines into the catalogues, at their beginning."""
    shown = blocks(page)
    assert {block.kind for block in shown} >= {"source", "entry", "changed"}
    for block in shown:
        if block.kind == "source":
            assert not (clone.folder / block.name).exists()
            (clone.folder / block.name).write_text(block.text, encoding="utf-8")
        if block.kind == "entry":
            path, _, variable = block.name.partition(":")
            text = (clone.folder / path).read_text(encoding="utf-8")
            head = re.search(rf"^{variable}: [^\n]*\{{\n", text, re.MULTILINE)
            assert head is not None, block.name
            text = text[: head.end()] + block.text + text[head.end() :]
            (clone.folder / path).write_text(text, encoding="utf-8")


def use(clone: Clone, page: str) -> None:
    """Change ``params.yaml`` as the page does; what it leaves unsaid stays."""
    for block in blocks(page):
        if block.kind == "changed":
            for key, value in yaml.safe_load(block.text).items():
                nested = isinstance(value, dict) and key in ("dataset", "evaluate")
                change_settings(clone.folder, {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value})


@pytest.mark.slow
def test_a_method_added_as_its_page_says_runs_and_nothing_else_does(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    made = clone.work
    add(clone, "new-method.md")
    use(clone, "new-method.md")
    output = clone.repro("evaluate")
    dm = "evaluate/clpdd_resnet14-dm-clpdd_resnet14"
    own = [f"{dm}/closed_form-bank-2", f"{dm}/closed_form-clean", f"{dm}/sgd-bank-2"]
    assert clone.done_since(made) == ["distill/clpdd_resnet14-dm", *own]
    assert {stage.partition("@")[0] for stage in stages_made(output)} == {"distill", "evaluate"}


@pytest.mark.slow
def test_a_dataset_added_as_its_page_says_runs_the_index_alone(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    made = clone.work
    add(clone, "new-dataset.md")
    assert stages_made(clone.repro()) == ["index"]
    assert clone.done_since(made) == []  # found finished, published again

    use(clone, "new-dataset.md")
    assert stages_made(clone.repro("index")) == ["index"]
    assert clone.done_since(made) == ["index/splits"]
    assert '"ring"' in (clone.folder / "data" / "index" / "summary.json").read_text()

    indexed = clone.work
    clone.append("clpdd/datasets/sources/rings.py", "def _added() -> int:\n    return 1")
    digest = (clone.folder / "data" / "index" / "train.parquet").read_bytes()
    assert stages_made(clone.repro("index")) == ["index"]
    assert clone.done_since(indexed) == ["index/splits"]
    assert (clone.folder / "data" / "index" / "train.parquet").read_bytes() == digest


@pytest.mark.slow
def test_an_encoder_added_as_its_page_says_runs_and_no_other_encodes_again(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    change_settings(clone.folder, {"methods": ["clp"]})
    made = clone.work
    add(clone, "new-encoder.md")
    (weights,) = (block.text for block in blocks("new-encoder.md") if "save_file(" in block.text)
    assert "48 32" in run(clone.folder, "python", "-c", f"import clpdd, clpdd.encoders.tiny_vit\n{weights}")
    use(clone, "new-encoder.md")
    output = clone.repro("evaluate")
    done = clone.done_since(made)
    assert done
    assert {name.split("/")[0] for name in done} == {"cache", "kernels", "distill", "evaluate"}
    assert all("tiny" in name.split("/")[1] for name in done)
    assert "cache of clpdd_resnet14-train is already done" in output
    assert "distill of clpdd_resnet14-clp is already done" in output


@pytest.mark.slow
def test_a_protocol_added_as_its_page_says_runs_and_no_other_probe_is_trained(finished: Clone, tmp_path: Path) -> None:
    clone = finished.copied_to(tmp_path / "clone")
    made = clone.work
    add(clone, "new-protocol.md")
    use(clone, "new-protocol.md")
    new = [f"evaluate/clpdd_resnet14-{method}-clpdd_resnet14/nearest_mean-clean" for method in ("clp", "lgm")]
    assert stages_made(clone.repro()) == ["evaluate", "report"]
    assert clone.done_since(made) == new
    assert '"protocol": "nearest_mean"' in (clone.folder / "data" / "results" / "report.json").read_text()

    evaluated = clone.work
    clone.append("clpdd/evaluation/protocols/nearest_mean.py", "def _added() -> int:\n    return 1")
    assert stages_made(clone.repro("evaluate")) == ["evaluate"]
    assert clone.done_since(evaluated) == new
