"""Seconds of a step, in parts and against the bare encoder passes, and LGM's step beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clpdd.functional.image_gradient import Views, step
from clpdd.optimise.images import ImageState, StateChunk

from .clock import OUT_OF_MEMORY, Stopwatch, fits, seconds
from .shape import Shape, Workload
from .table import Section

__all__ = ["PARTS", "methods", "parts", "scaling", "take"]

_BLIND, _WITH_GRAPH = "encoder, without a graph", "encoder, with a graph and back"
PARTS = ("pyramid", "augmentation", _BLIND, _WITH_GRAPH, "solve and outer loss", "optimiser", "other")


def take(problem: Workload, number: int, method: str = "clp", batch: int | None = None) -> None:
    """One step of a method."""
    loss = problem.closed_form(number) if method == "clp" else problem.matching(number)
    problem.images.begin(1e-3)
    images, kept = problem.images, problem.plan.kept
    step(problem.encode, images, problem.views(number), loss, batch or problem.batch, images.update, kept)


def parts(shape: Shape, problem: Workload, repeats: int) -> Section:
    """Where a step's time goes."""
    device, numbers = problem.device, iter(range(1_000_000))
    whole, bare = seconds([lambda: take(problem, next(numbers)), problem.bare], device, repeats)
    watch = Stopwatch(device)
    for _ in range(repeats):
        _watched(problem, watch, next(numbers))
    total = sum(watch.parts.values())
    section = Section(
        f"A step: {_name(shape)}, {problem.plan.told(len(problem.labels))}",
        ["part", "milliseconds", "share of the step"],
    )
    for name in PARTS:
        if (spent := watch.parts.get(name)) is None:  # of the encoder's two parts, in one pass there is but one
            continue
        section.add(name, 1e3 * spent / repeats, f"{100 * spent / total:.1f} %")
    section.add("the whole step, unwatched", 1e3 * whole, "")
    section.add("bare encoder passes over as many views", 1e3 * bare, "")
    section.add("step / bare passes", whole / bare, "")
    return section


def methods(shape: Shape, problem: Workload, repeats: int) -> Section:
    """CLP-DD and LGM at the same shape: seconds a step."""
    numbers = iter(range(1_000_000))
    everything = len(problem.labels)
    runs: dict[str, Callable[[], None]] = {
        "CLP-DD": lambda: take(problem, next(numbers)),
        "LGM, all views in one graph (as published)": lambda: take(problem, next(numbers), "lgm", everything),
        "LGM on this engine": lambda: take(problem, next(numbers), "lgm"),
    }
    fitting = {name: work for name, work in runs.items() if fits(work, problem.device)}
    taken = dict(zip(fitting, seconds(list(fitting.values()), problem.device, repeats), strict=True))
    section = Section(f"Methods: {_name(shape)}", ["method", "milliseconds a step", "times CLP-DD"])
    for name in runs:
        if name in taken:
            section.add(name, 1e3 * taken[name], taken[name] / taken["CLP-DD"])
        else:
            section.add(name, OUT_OF_MEMORY, None)
    section.notes.append("LGM's real images lie decoded in memory: its loading is not counted.")
    return section


def scaling(shapes: Sequence[tuple[Shape, Workload]], repeats: int) -> Section:
    """A step against the bare passes as the number of images grows."""
    section = Section("Scaling over classes", ["shape", "milliseconds a step", "step / bare passes"])
    for shape, problem in shapes:
        numbers = iter(range(1_000_000))
        whole, bare = seconds([lambda: take(problem, next(numbers)), problem.bare], problem.device, repeats)  # noqa: B023  (called at once)
        section.add(_name(shape), 1e3 * whole, whole / bare)
    return section


def _name(shape: Shape) -> str:
    return f"{shape.model}, {shape.size} px, {shape.images} images x {shape.views} views"


# -- a step under watch ------------------------------------------------------------------------------------------------


def _watched(problem: Workload, watch: Stopwatch, number: int) -> None:
    watch.enter("other")
    loss = problem.closed_form(number)
    images, views = _Images(problem.images, watch), _Views(problem.views(number), watch)
    problem.images.begin(1e-3)

    def encode(pixels: Tensor) -> Tensor:
        part = _WITH_GRAPH if torch.is_grad_enabled() else _BLIND
        watch.enter(part)
        return watch.on_the_way_back(problem.encode(pixels), part)

    def scored(Z: Tensor) -> Tensor:
        watch.enter("solve and outer loss")
        return watch.on_the_way_back(loss(Z), "solve and outer loss")

    def update(chunk: StateChunk, gradients: Sequence[Tensor]) -> None:
        watch.enter("optimiser")
        problem.images.update(chunk, gradients)
        watch.enter("other")

    step(encode, images, views, scored, problem.batch, update, problem.plan.kept)  # type: ignore[arg-type]  # watched ones stand in
    watch.stop()


@dataclass(frozen=True)
class _Images:
    images: ImageState
    watch: Stopwatch

    def __len__(self) -> int:
        return len(self.images)

    def chunks(self, size: int, update: bool = False) -> Iterator[StateChunk]:
        return self.images.chunks(size, update)

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        self.watch.enter("pyramid")
        return self.watch.on_the_way_back(self.images.decode(levels), "pyramid")


@dataclass(frozen=True)
class _Views:
    views: Views
    watch: Stopwatch

    @property
    def count(self) -> int:
        return self.views.count

    def of(self, images: Tensor, rows: range, views: range | None = None) -> Tensor:
        self.watch.enter("augmentation")
        return self.watch.on_the_way_back(self.views.of(images, rows, views), "augmentation")
