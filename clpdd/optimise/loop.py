"""The optimisation loop: steps, progress, previews, checkpoints, preemption. It knows no method's mathematics.

Over ranks, each holds and updates its own images. Rank 0 alone writes; stops and failures are agreed on, so that all
leave at the same step.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..distilled.dataset import DistilledSet
from ..errors import NumericalError, Preempted
from ..functional.image_gradient import StepResult
from ..functional.targets import Targets
from ..runtime.heap import freed_memory_kept
from ..runtime.machine import explain_memory_errors
from ..runtime.preemption import StopRequest
from ..runtime.progress import Progress
from ..storage.checkpoint import Checkpoint, load_latest
from .context import Context, Snapshot
from .images import ImageState, StateChunk, state_home
from .kept import Best, Previews
from .parameterisation import Parameterisation, pyramid_resolutions
from .saving import Saver
from .sharding import scatter_state
from .start import medoid_rows, nearest_rows, real_images

__all__ = ["Problem", "optimise"]

log = logging.getLogger(__name__)


class Problem(Protocol):
    """What a method that optimises images brings to the loop."""

    promised: int
    """Device bytes that images and moments take. Set it before ``batch`` is read, which plans by it."""

    carried: int
    """Device bytes that an image and its moments take on a visit, where they live elsewhere; set likewise."""

    def step(self, images: ImageState, step: int, update: Callable[[StateChunk, Sequence[Tensor]], None]) -> StepResult:
        """Hand the gradient of the loss to ``update``, chunk by chunk; a function of the images and the step alone."""

    def validate(self, pictures: Tensor) -> float:
        """Top-1 in percent on validation data, of this rank's images ``(n, 3, s, s)`` uint8; the same on all ranks."""

    @property
    def rough(self) -> bool:
        """Whether products beside the encoder may round as coarsely as it does."""

    @property
    def targets(self) -> Targets:
        """What the images stand for; learned ones have their gradient noted by ``step``."""

    @property
    def batch(self) -> int:
        """Views in a pass of the encoder."""

    @property
    def cost(self) -> tuple[int, int]:
        """Images that one step sends through the encoder, forward and backward."""


def optimise(context: Context, problem: Problem) -> DistilledSet:
    """Run (or continue) the optimisation in ``context.work`` and return the distilled set (other ranks: their part).

    Raises:
        Preempted: SIGTERM, SIGINT or SIGUSR1 came; the state after the current step is saved.
        NumericalError: the loss is NaN or infinite; the last checkpoint is kept.
        ResourceError: memory ran out (the message names the setting that lowers it).
    """
    loop = _Loop(context, problem)
    loop.restore()
    with explain_memory_errors(
        f"lower distill.encoder_batch (now {problem.batch}), runtime.memory or distill.augmentations; the last "
        f"checkpoint is kept"
    ):
        loop.run()
    return loop.result()


class _Loop:
    def __init__(self, context: Context, problem: Problem) -> None:
        self.context, self.problem, self.settings = context, problem, context.settings
        self.ranks, self.n = context.ranks, len(context.labels)
        self.device = context.encoder.device
        self.step = 0
        self.seconds = context.spent.seconds  # of the steps alone, over all attempts
        self.losses: list[float] = []
        self.scores: list[tuple[int, float]] = []
        self.best: Best | None = None
        self.previews = Previews(context.work / "frames")
        start = self._start_images()
        self.images = ImageState(self._parameterisation(start))
        problem.promised, problem.carried = self.images.on_device, self.images.carried
        self.start = self._collect(self.images.pictures() if start is None else start)

    def _start_images(self) -> Tensor | None:
        starts = {"centroid": nearest_rows, "medoids": medoid_rows}
        if self.settings.initialisation not in starts:
            return None
        own, rows = self.context.rows, starts[self.settings.initialisation](self.context)
        return real_images(self.context, rows[own.start : own.stop])

    def _parameterisation(self, start: Tensor | None) -> Parameterisation:
        own, size, pyramid = self.context.rows, self.context.size, self.settings.parameterisation == "pyramid"
        resolutions = pyramid_resolutions(size) if pyramid else [size]
        return Parameterisation(
            self.n,
            size,
            pyramid=pyramid,
            decorrelate=self.settings.decorrelate,
            start=self.settings.initialisation if start is None else start,
            seed=self.context.seed,
            device=self.device,
            home=state_home(
                len(own), resolutions, self.device, self.context.runtime.state, self.context.runtime.memory
            ),
            rows=own,
            together=self.problem.rough,
        )

    def _collect(self, own: Tensor) -> Tensor:
        """Rows of all images on rank 0, this rank's elsewhere."""
        return self.ranks.gather(own, self.n)

    # -- the loop --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        total = self.settings.steps
        with (
            freed_memory_kept(),
            StopRequest() as stop,
            Saver(self.context.work / "checkpoints", self.step, self.context.runtime) as saver,
            self._progress() as bar,
        ):
            if self.step == 0:
                self._preview()
                self._snapshot()
            while self.step < total:
                begun = time.perf_counter()
                self._one_step()
                self.seconds += time.perf_counter() - begun
                self._record()
                self._snapshot()
                bar.read(**self._readings())
                budget = self.context.watch.budget
                bar.update(1 if budget is None else max(0, min(int(self.seconds), bar.total) - bar.done))
                late = self.ranks.is_main and saver.due(self.step)
                due, stopped = self.ranks.all_reduce_max(late, signal.Signals[stop.name] if stop.name else 0)
                if stopped or due or self.step == total:
                    self.save(saver)
                saver.hold(self.step)
                if stopped and self.step < total:
                    saver.wait()
                    self.ranks.barrier()  # rank 0 has saved: torchrun ends all as soon as one leaves
                    name = signal.Signals(stopped).name
                    raise Preempted(f"stopped by {name} after {self._reached()}; saved: the same command goes on")

    def _progress(self) -> Progress:
        """Counts steps, or seconds where the clock ends the run."""
        if self.context.watch.budget is None:
            return Progress(self.settings.steps, "distill", "step", done=self.step, show=self.ranks.is_main)
        total = max(1, math.ceil(self.context.watch.budget))
        done = min(int(self.seconds), total)
        return Progress(total, "distill", "second", done=done, show=self.ranks.is_main)

    def _reached(self) -> str:
        budget = self.context.watch.budget
        if budget is None:
            return f"step {self.step} of {self.settings.steps}"
        return f"{self.seconds:.0f} of {budget:.0f} seconds, step {self.step}"

    def _one_step(self) -> None:
        complete = self.images.parameterisation.complete
        if not complete and self.step > 0 and self.step % self.settings.extend_every == 0:
            self.images.extend()
        self.images.begin(self.settings.learning_rate * self._decay())
        outcome = self.problem.step(self.images, self.step, self.images.update)
        loss, finite = torch.stack(
            [outcome.loss, outcome.finite.to(outcome.loss.dtype)]
        ).tolist()  # waits for the device
        (broken,) = self.ranks.all_reduce_max(not finite)
        if broken:
            raise NumericalError(
                f"the loss is {loss} or its gradient is not finite at step {self.step}: lower distill.learning_rate, "
                f"or raise distill.ridge or distill.temperature; the last checkpoint is kept"
            )
        self.problem.targets.update(self.settings.label_learning_rate * self._decay())
        self.step += 1
        self.losses.append(loss)

    def _decay(self) -> float:
        """What the schedule leaves of a learning rate."""
        if self.settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))

    def _soft_labels(self) -> Tensor | None:
        """``(n, C)`` on the CPU as they are now; ``None`` where labels are hard."""
        return None if self.settings.labels == "hard" else self.problem.targets.probabilities.detach().cpu().clone()

    def _record(self) -> None:
        last = self.step == self.settings.steps
        if last or self.step % self.settings.validate_every == 0:
            own = self.images.pictures()
            score = self.problem.validate(own)
            self.scores.append((self.step, score))
            if self.best is None or score > self.best.score or self.settings.keep == "last":
                self.best = Best(
                    step=self.step, score=score, images=self._collect(own), soft_labels=self._soft_labels()
                )
            self._tell(self.step)
        if last or self.step % self.settings.preview_every == 0:
            self._preview()

    def _snapshot(self) -> None:
        if self.context.watch.on_snapshot is not None and self.step in self.context.watch.snapshots:
            images, soft = self._collect(self.images.pictures()), self._soft_labels()
            forward, backward = self._passed()
            if self.ranks.is_main:
                self.context.watch.on_snapshot(Snapshot(self.step, self.seconds, images, forward, backward, soft))

    def _passed(self) -> tuple[int, int]:
        """Images sent through the encoder until now, forward and backward."""
        (forward, backward), spent = self.problem.cost, self.context.spent
        return spent.forward + forward * self.step, spent.backward + backward * self.step

    def _readings(self) -> dict[str, str]:
        readings = {} if self.context.watch.budget is None else {"step": str(self.step)}
        readings["loss"] = f"{self.losses[-1]:.4f}"
        if self.scores:
            readings["val"] = f"{self.scores[-1][1]:.1f}%"
        return readings

    def _tell(self, step: int) -> None:
        if self.context.watch.on_progress is not None and self.ranks.is_main:
            score = dict(self.scores)[step]
            self.context.watch.on_progress(step, {"loss": self.losses[step - 1], "validation_top1": score})

    def _preview(self) -> None:
        pictures = self._collect(self.images.pictures())
        if self.ranks.is_main:
            self.previews.add(self.step, pictures)

    # -- state -----------------------------------------------------------------------------------------------------

    def save(self, saver: Saver) -> None:
        saver.wait()  # for the memory of what is being written
        images = {name: self._collect(own) for name, own in self.images.tensors().items()}
        if not self.ranks.is_main:
            return
        values: dict[str, Any] = {"updates": self.images.updates, "losses": [*self.losses], "scores": [*self.scores]}
        values |= {"seconds": self.seconds, "previews": {**self.previews.digests}}
        lasting: dict[str, Tensor] = {}
        if self.best is not None:
            values["best"] = self.best.values
            lasting |= self.best.tensors
        if self.ranks.size > 1:  # what was collected is a copy already
            lasting, images = lasting | images, {}
        saver.save(self.step, images | self.problem.targets.tensors(), lasting, values)

    def restore(self) -> None:
        checkpoint = self._checkpoint() if self.ranks.is_main else None
        self.step, values = self.ranks.broadcast_object(
            (checkpoint.step, checkpoint.values) if checkpoint else (0, None)
        )
        if values is None:
            return
        saved = checkpoint.tensors if checkpoint else {}
        tensors = scatter_state(self.ranks, saved, shared="labels.")
        self.previews.digests, self.losses, self.seconds = values["previews"], values["losses"], values["seconds"]
        self.scores = [(step, score) for step, score in values["scores"]]
        self.images.restore(tensors, values["updates"])
        self.problem.targets.restore(tensors)
        if "best" in tensors:
            self.best = Best.restored(values["best"], saved if self.ranks.is_main else tensors)
        if self.ranks.is_main:
            log.info("continuing at step %d of %d", self.step, self.settings.steps)
        for step, _ in self.scores:
            self._tell(step)

    def _checkpoint(self) -> Checkpoint | None:
        """The newest one that can be continued."""
        found = load_latest(self.context.work / "checkpoints")
        if found is None or not self.previews.are_whole(found.values["previews"]):
            return None  # they become the timelapse: a damaged one costs a new start rather than a wrong result
        return found

    def result(self) -> DistilledSet:
        assert self.best is not None  # the last step always validates
        curves = {
            "loss": [[i + 1, loss] for i, loss in enumerate(self.losses)],
            "validation_top1": [[at, value] for at, value in self.scores],
        }
        forward, backward = self._passed()
        passes = {"forward": forward, "backward": backward}
        record = self.context.record | {"encoder_images": passes}
        record |= {"curves": curves, "kept_step": self.best.step, "validation_top1": self.best.score}
        names = self.context.index.class_names
        if not self.ranks.is_main:
            own = self.context.rows
            return DistilledSet(self.best.images, self.context.labels[own.start : own.stop], names, record)
        return DistilledSet(
            self.best.images,
            self.context.labels,
            names,
            record,
            start=self.start,
            frames=self.previews.frames(),
            soft_labels=self.best.soft_labels,
        )
