"""What DVC does not see is noticed, named and made again: a real `dvc repro` after weights and images were replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from .clones import copy_project, run, stages_run


def put_images(folder: Path, classes: str, count: int) -> None:
    """Images of one colour each, ``count`` per class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (80 * label, 7 * number, 99)).save(folder / name / f"{number:02d}.png")


def put_weights(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    save_file(timm.create_model("resnet10t", num_classes=0).state_dict(), path)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # three whole runs
def test_replaced_weights_and_images_are_noticed_named_and_made_again(tmp_path: Path) -> None:
    folder, weights = tmp_path / "clone", tmp_path / "w.safetensors"
    put_weights(weights, 1)
    put_images(folder / "photos", "ab", 12)
    own = {"mine": {"model": "resnet10t", "weights": str(weights), "image_size": 32}}
    few = {"distill.random_draws": 1, "evaluate.protocols": ["closed_form"], "evaluate.seeds": 1, "evaluate.views": 2}
    images = {"dataset.name": "folder", "dataset.train": "photos", "report.max_classes": 2}
    copy_project(folder, {"encoders": ["mine"], "encoder_options": own, "methods": ["random"], **few, **images})
    run(folder, "dvc", "init", "-q", "-f")  # the copy knows nothing of the project's cache
    run(folder, "git", "rm", "-r", "-q", "--cached", "photos")
    run(folder, "dvc", "add", "-q", "photos")
    run(folder, "dvc", "repro")
    lock = (folder / "dvc.lock").read_text()
    assert stages_run(run(folder, "dvc", "repro")) == ["inputs"]
    assert (folder / "dvc.lock").read_text() == lock

    put_weights(weights, 2)
    output = run(folder, "dvc", "repro")
    assert f"weights of encoder mine changed: {weights}" in output
    chain = ["cache@mine", "kernels@mine", "distill@mine-random", "evaluate", "report"]
    assert sorted(stages_run(output)) == sorted(["inputs", *chain])

    put_images(folder / "photos", "abc", 12)  # inside the project, and not added to DVC anew
    output = run(folder, "dvc", "repro")
    assert "images changed in photos: 12 added (c/00.png, c/01.png, ...)" in output
    assert sorted(stages_run(output)) == sorted(["inputs", "index", *chain])
    summary = json.loads((folder / "data/index/summary.json").read_text())
    assert sum(split["images"] for split in summary["splits"].values()) == 36
    assert stages_run(run(folder, "dvc", "repro")) == ["inputs"]
