"""The benchmark runs, tells what it promises, and needs nothing but torch and timm where steps are measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speed.clock import OUT_OF_MEMORY, Stopwatch, fits, seconds
from speed.shape import Shape, Workload
from speed.steps import PARTS, methods

ROOT = Path(__file__).parent.parent


def test_everything_is_measured_and_saved(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "speed",
        "--quick",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    saved = json.loads((tmp_path / "speed.json").read_text())
    assert {"processor", "threads", "torch", "timm"} <= saved["machine"].keys()
    titles = [section["title"].split(":")[0] for section in saved["sections"]]
    assert titles == [
        "A step",
        "Frozen encoders on the CPU",
        "Methods",
        "Scaling over classes",
        "Scaling over features and classes",
        "Scaling over processes",
        "Peak memory",
        "Evaluation",
        "Feature caching",
        "Sustained caching",
        "Decoding JPEG images for clpdd_resnet14, 32 px",
        "Streams",
        "4 steps of distill",
    ]
    for section in saved["sections"]:
        assert section["rows"]
        numbers = [cell for row in section["rows"] for cell in row if isinstance(cell, float)]
        assert numbers
        assert all(math.isfinite(number) and number >= 0 for number in numbers)
        assert section["title"] in (tmp_path / "speed.md").read_text()
    step = [row[0] for row in saved["sections"][0]["rows"]]
    assert step[: len(PARTS) - 1] == [part for part in PARTS if part != "encoder, without a graph"]  # one pass
    rows = {title: section["rows"] for title, section in zip(titles, saved["sections"], strict=True)}
    peaks = {tuple(row[:2]): row[2] for row in rows["Peak memory"]}
    assert peaks["lgm", 40] > peaks["lgm", 10]  # its graph grows with the images
    assert rows["Evaluation"][0][4] < 1e-4  # probes trained at once are those trained one after the other


def test_steps_are_measured_with_torch_and_timm_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('pydantic', 'zarr', 'pyarrow', 'yaml', 'jinja2', 'sklearn', 'tqdm', 'prefect', 'dvc'):\n"
        "    sys.modules[name] = None\n"
        "import torch, clpdd.encoders.architectures, speed.run, speed.evaluation, speed.processes\n"
        "from speed.shape import Workload, Shape\n"
        "from speed.steps import methods, parts\n"
        "shape = Shape('test_vit', 160, 3, 2, real=50, outer=20, batch=4)\n"
        "problem = Workload(shape, torch.device('cpu'))\n"
        "print(parts(shape, problem, 1).markdown(), methods(shape, problem, 1).markdown())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "passes of 4, each encoded twice" in done.stdout


def test_a_stopwatch_tells_apart_what_comes_on_the_way_back() -> None:
    watch = Stopwatch(torch.device("cpu"))
    leaf = torch.ones(3, requires_grad=True)
    watch.enter("forward")
    out = watch.on_the_way_back(leaf * 2, "backward")
    watch.enter("between")
    torch.autograd.grad(out.sum(), leaf)
    watch.stop()
    assert list(watch.parts) == ["forward", "between", "backward"]


def test_seconds_are_medians_of_work_taken_in_turns() -> None:
    order: list[str] = []
    taken = seconds([lambda: order.append("a"), lambda: order.append("b")], torch.device("cpu"), 3)
    assert order == ["a", "b"] * 4
    assert len(taken) == 2


def test_what_does_not_fit_is_told_and_the_rest_measured() -> None:
    shape, cpu = Shape("test_vit", 160, 4, 2, real=50, outer=20, batch=4), torch.device("cpu")
    problem = Workload(shape, cpu)
    encode = problem.encode

    def small(pixels: Tensor) -> Tensor:
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(pixels)

    problem.encode = small
    found = {row[0]: row[1] for row in methods(shape, problem, 1).rows}
    assert [cell == OUT_OF_MEMORY for cell in found.values()] == [False, True, False]
    assert fits(lambda: None, cpu)
    with pytest.raises(RuntimeError, match="broken"):
        fits(_broken, cpu)


def _broken() -> None:
    raise RuntimeError("broken")
