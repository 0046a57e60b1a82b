"""Speed and memory, measured side by side in one run: ``python -m speed`` (or ``make speed``).

Without arguments everything, small, in some minutes. On a GPU at the size of ImageNet-1K:

    python -m speed --shape imagenet1k --only steps methods memory evaluation processes

which needs torch, timm and numpy alone. Prints the tables and writes ``speed.md`` and ``speed.json`` into ``--out``.
Weights and features are random: speed does not depend on their values. Ratios are what to compare.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import clpdd.encoders.architectures  # noqa: F401  (registers the shipped encoder's architecture)
from clpdd.encoders.calling import pass_through
from clpdd.encoders.deterministic import deterministic

from . import table
from .memory import memory
from .shape import SHAPES, Workload
from .solving import dimensions
from .steps import methods, parts, scaling
from .table import Section

__all__ = ["main"]


@dataclass(frozen=True)
class _Run:
    shape: str
    device: torch.device
    repeats: int
    quick: bool
    steps: int = 120
    against: Path | None = None

    @property
    def problem(self) -> Workload:
        return Workload(SHAPES[self.shape], self.device)


def _steps(run: _Run) -> Iterator[Section]:
    yield parts(SHAPES[run.shape], run.problem, run.repeats)


def _frozen(run: _Run) -> Iterator[Section]:
    from .frozen import frozen

    models = {"clpdd_resnet14": (64, 30), "resnet10t": (64, 30)}
    large = {"tf_efficientnet_lite0": (224, 30), "mobilenetv2_100": (224, 30), "resnet50": (224, 30)}
    yield frozen({"clpdd_resnet14": (32, 2)} if run.quick else models | large, 1 if run.quick else run.repeats)


def _methods(run: _Run) -> Iterator[Section]:
    yield methods(SHAPES[run.shape], run.problem, run.repeats)


def _scaling(run: _Run) -> Iterator[Section]:
    sizes = (10, 30) if run.quick else (10, 100, 300)
    shapes = [SHAPES[run.shape].with_images(n) for n in sizes]
    yield scaling([(shape, Workload(shape, run.device)) for shape in shapes], run.repeats)
    dims, classes = ((64,), (10, 30)) if run.quick else ((384, 768, 1536), (10, 100, 1000))
    yield dimensions(run.device, dims, classes, run.repeats)


def _processes(run: _Run) -> Iterator[Section]:
    from .processes import processes

    most = torch.cuda.device_count() if run.device.type == "cuda" else 2
    sizes = [size for size in (1, 2, 4, 8) if size <= most]
    yield processes(run.shape, run.device, sizes, 10 if run.quick else SHAPES[run.shape].images, run.repeats)


def _memory(run: _Run) -> Iterator[Section]:
    counts = (10, 40) if run.quick else (100, 1000, 10_000)
    yield memory(run.shape, run.device, counts, limit=counts[0] if run.shape == "imagenet1k" else 1000)


def _evaluation(run: _Run) -> Iterator[Section]:
    from .evaluation import evaluation

    yield evaluation(run.device, (10,) if run.quick else (10, 100, 1000), 5 if run.quick else 100)


def _caching(run: _Run) -> Iterator[Section]:
    from .caching import caching

    small, large = (64, 16) if run.quick else (32_768, 512)
    models = {"clpdd_resnet14": (64, small)}
    yield caching(run.device, models if run.quick else models | {"vit_small_patch16_224": (224, large)})


def _sustained(run: _Run) -> Iterator[Section]:
    from .caching import sustained

    models = {"clpdd_resnet14": (64, 200 if run.quick else 20_000)}
    if run.device.type == "cuda":
        models["vit_small_patch16_224"] = (224, 20_000)
    yield sustained(run.device, models, 5 if run.quick else 300)


def _decoding(run: _Run) -> Iterator[Section]:
    from .caching import jpeg

    if run.quick:
        yield jpeg(run.device, ("clpdd_resnet14", 32), (200,), 2, 1)
    else:
        yield jpeg(run.device, ("tf_efficientnet_lite0", 224), (500, 768, 1200, 2100), 8, run.repeats)


def _streams(run: _Run) -> Iterator[Section]:
    from .streams import streams

    yield streams(10_000 if run.quick else 1_000_000, 64 if run.quick else 768, 100)


def _distilling(run: _Run) -> Iterator[Section]:
    from .distilling import distilling

    shape = SHAPES[run.shape].with_images(10) if run.quick else SHAPES[run.shape]
    yield distilling(shape, str(run.device), 4 if run.quick else run.steps, run.against)


_SECTIONS: dict[str, Callable[[_Run], Iterator[Section]]] = {
    "steps": _steps,
    "frozen": _frozen,
    "methods": _methods,
    "scaling": _scaling,
    "processes": _processes,
    "memory": _memory,
    "evaluation": _evaluation,
    "caching": _caching,
    "sustained": _sustained,
    "decoding": _decoding,
    "streams": _streams,
    "distilling": _distilling,
}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(prog="python -m speed", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, default=list(_SECTIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--steps", type=int, default=120, help="of the distillations of the section distilling")
    parser.add_argument("--against", type=Path, help="another checkout, whose distillation is measured too")
    parser.add_argument("--out", type=Path, default=Path("data/speed"))
    options = parser.parse_args()
    device = torch.device(options.device)
    run = _Run(options.shape, device, options.repeats, options.quick, options.steps, options.against)
    sections: list[Section] = []
    command = shlex.join(["python", "-m", "speed", *sys.argv[1:]])
    with deterministic(run.device, lambda: pass_through(run.problem.encoder)):  # as distillation does
        for name in options.only:
            for section in _SECTIONS[name](run):
                sections.append(section)
                print(section.markdown(), flush=True)
                table.save(options.out, table.machine(run.device), command, sections)  # what there is, if it is stopped
    print(f"written: {options.out / 'speed.md'}")
