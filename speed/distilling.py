"""Whole distillations, this checkout's and another's: ``python distilling.py ORDER`` is one of them.

Started as a file, with the checkout to be measured on PYTHONPATH, so that one file measures all of them; it uses no
more of the library than what every version has. Each makes its inputs, the same for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

__all__ = ["distilling"]

_HERE = Path(__file__).resolve().parent.parent
_IMAGES = {"train": 2, "validation": 1, "test": 1}  # of every class: a step is scored on a mini-batch in any case


def distilling(shape: Any, device: str, steps: int, against: Path | None) -> Any:
    """Seconds of ``distill`` at a shape, with checkpoints, validation and previews, each in a process of its own.

    On a CPU this checkout also in bfloat16, which is a setting there; on CUDA both compute in it by themselves.
    """
    from .table import Section

    title = f"{steps} steps of distill: {shape.model}, {shape.size} px, {shape.images} images x {shape.views} views"
    columns = ["checkout", "seconds", "a step, ms", "peak device memory, GiB", "top-1, validation", "times as fast"]
    section = Section(title, columns)
    taken: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (root, precision) in _sides(device, against).items():
            taken[name] = _in_a_process(root, [folder, name, asdict(shape), device, steps, precision])
    base = list(taken.values())[-1]["seconds"]
    for name, read in taken.items():
        section.add(name, read["seconds"], 1e3 * read["step"], read["peak"], read["top1"], base / read["seconds"])
    section.notes.append("Start of the process and preparation not counted; compiling, checkpoints, validation are.")
    if len(taken) == 1:
        section.notes.append("The ratio to another checkout was not taken: --against names one.")
    return section


def _sides(device: str, against: Path | None) -> dict[str, tuple[Path, str]]:
    """Checkout and precision of every distillation, the one that the others are compared with last."""
    sides = {"this one, bfloat16": (_HERE, "bfloat16")} if device == "cpu" else {}
    sides["this one"] = (_HERE, "auto")
    return sides | ({"the other": (against.resolve(), "auto")} if against else {})


def _in_a_process(root: Path, order: list[Any]) -> Any:
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", __file__, json.dumps(order)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment, cwd="/")
    if done.returncode:
        raise RuntimeError(f"the distillation of {root} left with {done.returncode}: see above")
    read = done.stdout.splitlines()[-1]
    print(order[1], read, file=sys.stderr, flush=True)
    return json.loads(read)


# -- in the process ----------------------------------------------------------------------------------------------------


def _distil(folder: str, name: str, shape: dict[str, Any], device: str, steps: int, precision: str) -> dict[str, Any]:
    import torch

    from clpdd import AugmentSettings, DistillSettings, load_encoder

    encoder = load_encoder(shape["model"], image_size=shape["size"], untrained=0, device=device)
    # Each its own data: versions tell encoders apart differently.
    root, data = Path(folder), Path(folder) / f"data of {name}"
    _prepare(data, encoder, shape, precision)
    marks: list[tuple[int, float]] = []

    def mark(step: int, _: dict[str, float]) -> None:
        marks.append((step, time.perf_counter() - begun))
        print(f"{name}: step {step} after {marks[-1][1]:.1f} s", file=sys.stderr, flush=True)

    begun = time.perf_counter()
    settings = DistillSettings(
        steps=steps,
        images_per_class=shape["per_class"],
        augmentations=shape["views"],
        augment=AugmentSettings(),
        precision=precision,
    )
    made = _run(data, encoder, root / name, settings, mark)
    seconds = time.perf_counter() - begun
    (one, early), (other, late) = ([(0, 0.0), *marks] if len(marks) < 2 else marks)[:2]
    return {
        "seconds": seconds,
        "step": (late - early) / max(1, other - one),
        "peak": torch.cuda.max_memory_reserved() / 2**30 if device.startswith("cuda") else None,
        "top1": made.info["validation_top1"],
        "marks": marks,
    }


def _run(data: Path, encoder: Any, out: Path, settings: Any, mark: Any) -> Any:
    """``distill`` as this checkout calls it, or as those before the folders did."""
    features, index, kernels = (data / name for name in ("features", "index", "kernels"))
    places = {
        "index": index / "train.parquet",
        "train": features / encoder.name / "train.zarr",
        "validation": features / encoder.name / "validation.zarr",
        "kernels": kernels / encoder.name,
    }
    try:
        from clpdd.config.variants import MethodVariant
        from clpdd.optimise.context import Watch
        from clpdd.stages.distill import distill
        from clpdd.stages.project import Run, TrainingData
    except ImportError:
        from clpdd.distill import distill as former  # type: ignore[import-not-found]  # an older checkout

        return former(
            "clp", **places, encoder=encoder, target=out / "set", work_root=out / "work", settings=settings,
            on_progress=mark,
        )  # fmt: skip
    return distill(
        MethodVariant("clp", "clp", settings),
        TrainingData(**places),
        encoder,
        out / "set",
        run=Run(work=out / "work"),
        watch=Watch(on_progress=mark),
    )


def _prepare(root: Path, encoder: Any, shape: dict[str, Any], precision: str) -> None:
    import numpy as np

    from clpdd import CacheSettings, KernelSettings, Workspace, index_arrays

    classes, random = shape["classes"], np.random.default_rng(0)
    splits = {
        split: (random.integers(0, 256, (count * classes, 32, 32, 3), np.uint8), np.arange(count * classes) % classes)
        for split, count in _IMAGES.items()
    }
    index_arrays(splits, [str(number) for number in range(classes)], root / "index")
    cache, kernels = CacheSettings(batch_size=256, precision=precision), KernelSettings(nearest=shape["per_class"])
    Workspace(root, encoder, cache=cache, kernels=kernels).kernels()


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    print(json.dumps(_distil(*json.loads(sys.argv[1]))))
