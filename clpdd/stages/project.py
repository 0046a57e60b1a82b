"""What every stage is given: the settings, where inputs and artifacts lie, and how it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..catalogue.methods import METHODS
from ..config.loading import load_settings
from ..config.runtime import RuntimeSettings
from ..config.settings import Settings
from ..distributed.group import ALONE, Ranks
from ..encoders.encoder import Encoder, require_square
from ..encoders.loading import load_encoder, resolve_device
from ..encoders.names import check_architecture
from ..encoders.shapes import registered_shape
from ..storage.layout import Layout
from ..storage.ownership import take
from ..storage.work import WorkFolder

__all__ = ["Project", "Run", "TrainingData", "open_project"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a stage runs. Nothing in it decides a result.

    Attributes:
        work: root of the partial work, on the file system of the artifacts if possible (hard links).
        clocks: folder that takes seconds and peak memory; ``None``: the folder ``clocks`` beside ``work``.
        wait: seconds to wait for another run of the same work before ``BusyError``; 0 means not at all.
        ranks: this process among those that call a stage with the same arguments.
        runtime: where things are kept, how often they are saved.
    """

    work: Path
    clocks: Path | None = None
    wait: float = 0.0
    ranks: Ranks = ALONE
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)

    def folder(self, stage: str, item: str, fingerprint: Mapping[str, Any]) -> WorkFolder:
        """The exclusive, resumable folder of one item of a stage."""
        return WorkFolder(self.work, stage, item, fingerprint, wait=self.wait, clocks=self.clocks)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Everything of the real data that a distillation may read. There is no test split in it.

    Attributes:
        index: Parquet index of the training split.
        train, validation: feature stores of the two splits, by one encoder.
        kernels: folder of the kernel stage for that encoder.
    """

    index: Path
    train: Path
    validation: Path
    kernels: Path


@dataclass(frozen=True)
class Project:
    """Settings, the folder their artifacts lie in, and this process among those that run the stage together.

    ``params`` is the file that the settings come from, ``None`` of those made in Python.
    """

    settings: Settings
    layout: Layout
    ranks: Ranks = ALONE
    params: Path | None = None

    @property
    def run(self) -> Run:
        """How the stages of this project run."""
        runtime = self.settings.runtime
        return Run(
            work=self.layout.work,
            clocks=self.layout.clocks,
            wait=runtime.wait_seconds,
            ranks=self.ranks,
            runtime=runtime,
        )

    def training(self, encoder: str) -> TrainingData:
        """What distillations with an encoder read."""
        return TrainingData(
            index=self.layout.index("train"),
            train=self.layout.features(encoder, "train"),
            validation=self.layout.features(encoder, "validation"),
            kernels=self.layout.kernels(encoder),
        )

    def check_encoders(self) -> None:
        """Raise ``SettingsError``, before any image is read, for an encoder that is misspelt or that no method fits."""
        settings = self.settings
        for name in settings.encoders:
            for member, options in settings.members(name).items():
                where = "encoders" if member == name else f"encoder_options.{name}.members"
                others = [] if member == name else [*settings.encoder_options, *settings.encoders]
                architecture = options.model or member
                check_architecture(architecture, where, others, weights_needed=options.weights is None)
                shape = registered_shape(architecture)
                if options.image_size is None and shape is not None:
                    self.refuse_oblong(member, shape)

    def refuse_oblong(self, encoder: str, shape: tuple[int, int]) -> None:
        """Raise ``SettingsError`` where an input of ``shape``, height and width in pixels, is not square and a method
        makes images."""
        for method in self.settings.methods:
            if METHODS[self.settings.variant(method).method].images:
                require_square(encoder, shape, f"the method {method}")

    def encoder(self, name: str) -> Encoder:
        """One of the configured encoders, on the configured device."""
        self.settings.refuse_unlisted_encoder(name)
        return load_encoder(**self.encoder_arguments(name))

    def take(self, stage: str, item: str, target: Path, *keys: str, encoder: str | None = None, **values: Any) -> None:
        """Note which settings an artifact is made with; refused where another file's would be replaced.

        Args:
            item: which one of the stage's artifacts; empty where it has one.
            keys: sections and settings at the top of the file that decide it.
            encoder: an encoder whose options decide it.
            values: further values that do.

        Raises:
            SettingsError: see ``storage.ownership.take``.
        """
        if self.params is None:
            return
        settings = load_settings(self.params, place=False)  # the same wherever the command runs
        written = settings.model_dump(mode="json")
        decides = {key: written[key] for key in keys} | values
        if encoder is not None:
            members = settings.members(encoder)
            decides["encoder"] = {name: options.model_dump(mode="json") for name, options in members.items()}
        take(self.layout.root, self.params, stage, item, target, decides, self.ranks.is_main)

    def refuse_small_classes(self, train: Path | None = None) -> None:
        """Raise ``SettingsError`` where a method takes more images of a class than the index has.

        Args:
            train: the training split's index, where it is not published yet.
        """
        from ..datasets.index import Index  # here: stages that read no index must not hang on it

        index = Index.open(train or self.layout.index("train"))
        counts = np.bincount(index.labels, minlength=len(index.class_names)).tolist()
        self.settings.refuse_small_classes(index.class_names, counts)

    def encoder_arguments(self, name: str) -> dict[str, Any]:
        """Arguments of ``load_encoder``, as JSON values that another process can be handed."""
        device = self.ranks.device(resolve_device(self.settings.runtime.device))
        return self.settings.encoder_arguments(name) | {"device": str(device)}


def open_project(
    params: Path | str | Settings = "params.yaml", data: Path | str = "data", ranks: Ranks = ALONE
) -> Project:
    """Read the settings, unless they are given, and set the number of CPU threads. Raises ``SettingsError``."""
    settings = params if isinstance(params, Settings) else load_settings(params)
    if settings.runtime.threads:
        torch.set_num_threads(settings.runtime.threads)
    return Project(settings, Layout(Path(data)), ranks, None if isinstance(params, Settings) else Path(params))
