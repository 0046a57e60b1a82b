"""Passes of encoders as timm builds them against those of the same encoders frozen."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import timm
import torch
from torch import Tensor

from clpdd.encoders.building import channels_last
from clpdd.encoders.calling import encoder_call
from clpdd.encoders.encoder import Encoder
from clpdd.runtime.heap import freed_memory_kept

from .table import Section

__all__ = ["frozen"]


def frozen(models: dict[str, tuple[int, int]], repeats: int) -> Section:
    """Seconds of a pass and of its way back to the pixels, one thread on the CPU; models: side and images of a pass."""
    columns = ["encoder", "images", "side, pixels", "precision", "as built, s", "frozen, s", "times quicker"]
    columns += ["features apart"]
    section = Section("Frozen encoders on the CPU: forward and the gradient of the pixels", columns)
    section.notes.append(
        "Frozen: batch norms folded, activations without copies, no slow ways back in bfloat16, freed memory kept. "
        f"Seconds of the thread, the least of {repeats}."
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, (side, count) in models.items():
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=0, pretrained=name.startswith("clpdd_")).requires_grad_(False)
            built = Encoder(name, channels_last(model.eval()), side)
            made = copy.deepcopy(built).freeze()
            images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
            for precision in ("float32", "bfloat16"):
                before, after = encoder_call(built, precision), encoder_call(made, precision)
                slow = _least(before, images, repeats)
                with freed_memory_kept():
                    quick = _least(after, images, repeats)
                with torch.no_grad():
                    expected, found = before(images[:2]), after(images[:2])
                apart = ((found - expected).norm() / expected.norm()).item()
                section.add(name, count, side, precision, slow, quick, slow / quick, apart)
    finally:
        torch.set_num_threads(threads)
    return section


def _least(encoder: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> float:
    taken = []
    for _ in range(repeats + 2):
        pixels = images.clone().requires_grad_()
        begun = time.thread_time()
        torch.autograd.grad(encoder(pixels).square().sum(), pixels)
        taken.append(time.thread_time() - begun)
    return min(taken[2:])
