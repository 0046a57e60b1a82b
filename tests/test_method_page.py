"""The plain loop of docs/method.md is the engine's step: the same loss, the same gradient, the same update."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from clpdd.methods.clp import ClosedFormProbe
from clpdd.optimise.loop import optimise
from clpdd.optimise.parameterisation import Parameterisation
from clpdd.optimise.start import nearest_rows, real_images
from clpdd.storage.checkpoint import load_latest
from manual.blocks import find_blocks

from .conftest import World
from .contexts import context

PAGE = Path(__file__).parent.parent / "docs" / "method.md"


def clp_step() -> Any:
    """The function as the page shows it."""
    (block,) = (found for found in find_blocks(PAGE.read_text(encoding="utf-8")) if "def clp_step(" in found.text)
    names: dict[str, Any] = {}
    exec(compile(block.text, str(PAGE), "exec"), names)
    return names["clp_step"]


@pytest.mark.parametrize("encoder_batch", [512, 7])
def test_the_page_takes_the_engines_first_step(world: World, tmp_path: Path, encoder_batch: int) -> None:
    made = context(
        world, tmp_path, steps=1, augmentations=2, outer_batch=50, encoder_batch=encoder_batch, precision="float32"
    )
    start = Parameterisation(
        10,
        world.encoder.size,
        pyramid=True,
        decorrelate=True,
        start=real_images(made, nearest_rows(made)),
        seed=0,
        device=torch.device("cpu"),
    )
    levels = [level.clone().requires_grad_() for level in start.levels]
    adam = torch.optim.Adam(levels, lr=made.settings.learning_rate)
    loss = clp_step()(
        levels, adam, world.encoder, made.labels, made.train.features(), made.train.labels, made.settings, 0, 0
    )

    with closing(ClosedFormProbe(made)) as problem:
        distilled = optimise(made, problem)
    saved = load_latest(tmp_path / "checkpoints")
    assert saved is not None
    assert len(levels) == 7
    assert distilled.info["curves"]["loss"] == [[1, pytest.approx(loss, rel=1e-5)]]
    for k, level in enumerate(levels):
        assert level.grad is not None
        scale = level.grad.abs().max().item()
        torch.testing.assert_close(10 * saved.tensors[f"adam.{k}.mean"], level.grad, rtol=1e-3, atol=1e-4 * scale)
        moved = level.grad.abs() > 1e-2 * scale  # Adam's first step is the gradient's sign, which rounding has near 0
        assert moved.any()
        torch.testing.assert_close(saved.tensors[f"level.{k}"][moved], level[moved].detach(), rtol=0, atol=1e-5)
        assert not torch.equal(level.detach(), start.levels[k])
