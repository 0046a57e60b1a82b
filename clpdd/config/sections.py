"""The stages' sections of ``params.yaml`` as typed, immutable settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from ..errors import SettingsError
from .domains import Count, NonNegativeReal, PerClass, Positive, PositiveReal, Section, Share, once

__all__ = [
    "AugmentSettings",
    "BenchmarkSettings",
    "CacheSettings",
    "DistillSettings",
    "EvaluateSettings",
    "KernelSettings",
    "ReportSettings",
    "RuntimeSettings",
]


def _has_default(counts: dict[str, int]) -> dict[str, int]:
    if "default" not in counts:
        raise ValueError("a mapping needs default, the number of every class that it does not name")
    return counts


# The tags in brackets keep problems of the one form free of the other's: the explanation leaves them out.
PerClasses = Annotated[
    Annotated[PerClass, Tag("[one]")] | Annotated[dict[str, PerClass], AfterValidator(_has_default), Tag("[each]")],
    Discriminator(lambda value: "[each]" if isinstance(value, Mapping) else "[one]"),
]
Precision = Literal["auto", "float32", "bfloat16"]
Protocol = Literal["sgd", "closed_form"]
Ablation = Literal[
    "objective",
    "outer_batch",
    "temperature_ridge",
    "parameterisation",
    "decorrelation",
    "augmentation",
    "views",
    "initialisation",
    "centring",
]


class CacheSettings(Section):
    """Encoding of the real images into Zarr."""

    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "auto"
    batch_size: Positive = 64
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    chunk_rows: Positive = 512
    shard_rows: Positive = 8192

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows ({self.shard_rows}) must be a multiple of chunk_rows ({self.chunk_rows})")
        return self


class KernelSettings(Section):
    """The one streamed pass over the features."""

    ridge_grid: Annotated[list[PositiveReal], Field(min_length=1)] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    block_rows: Positive = 8192
    nearest: Positive = 10


class AugmentSettings(Section):
    """Differentiable augmentation (DSA); every piece can be switched off."""

    flip: Share = 0.5
    crop: bool = True
    crop_area: Annotated[list[PositiveReal], Field(min_length=2, max_length=2)] = [0.08, 1.0]
    crop_aspect: Annotated[list[PositiveReal], Field(min_length=2, max_length=2)] = [3 / 4, 4 / 3]
    noise: Share = 0.0
    noise_mean: float = 0.5
    noise_std: NonNegativeReal = 0.2

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("crop_area", "crop_aspect"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}], but the first number must not exceed the second")
        if self.crop_area[1] > 1:
            raise ValueError(f"crop_area ends at {self.crop_area[1]}, but a crop covers at most the whole image (1.0)")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is changed at all."""
        return self.crop or self.flip > 0 or self.noise > 0

    def without_noise(self) -> AugmentSettings:
        """Flip and crop alone, as the evaluation protocols use them."""
        return self.model_copy(update={"noise": 0.0})


class DistillSettings(Section):
    """How synthetic images are made (METHODS in ``clpdd.methods``)."""

    images_per_class: PerClasses = 1
    labels: Literal["hard", "learned", "probe"] = "hard"
    label_learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.03
    steps: Positive = 600
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.03
    schedule: Literal["constant", "cosine"] = "cosine"
    objective: Literal["cross_entropy", "cosine", "mse"] = "cross_entropy"
    temperature: PositiveReal = 0.05
    ridge: NonNegativeReal = 3.0
    centre: Literal["real", "none"] = "real"
    outer_batch: Count = 4096
    augmentations: Annotated[int, Field(ge=1, le=1000)] = 3
    augment: AugmentSettings = AugmentSettings()
    parameterisation: Literal["pyramid", "pixels"] = "pyramid"
    extend_every: Positive = 50
    decorrelate: bool = True
    initialisation: Literal["centroid", "noise", "zero"] = "centroid"
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    encoder_batch: Positive | None = None
    precision: Precision = "auto"
    compile: bool | Literal["auto"] = "auto"
    neighbor_of: Literal["clp", "lgm"] = "clp"
    keep: Literal["best", "last"] = "best"
    validate_every: Positive = 50
    preview_every: Positive = 100
    checkpoint_every_steps: Positive = 100
    checkpoint_every_seconds: PositiveReal = 60

    @property
    def most_per_class(self) -> int:
        """The most images any class has."""
        ipc = self.images_per_class
        return ipc if isinstance(ipc, int) else max(ipc.values())

    def per_class(self, class_names: Sequence[str]) -> list[int]:
        """Images of every class. Raises ``SettingsError`` when ``images_per_class`` names a class that is not there."""
        ipc = self.images_per_class
        if isinstance(ipc, int):
            return [ipc] * len(class_names)
        for name in ipc:
            if name != "default" and name not in class_names:
                near = difflib.get_close_matches(name, class_names, n=3)
                listed = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
                hint = f"near names: {', '.join(near)}" if near else f"classes are {listed}"
                raise SettingsError(f"distill.images_per_class names {name!r}, which is no class of the data; {hint}")
        return [ipc.get(name, ipc["default"]) for name in class_names]

    def images(self, classes: int) -> int:
        """Images of ``classes`` classes together."""
        ipc = self.images_per_class
        if isinstance(ipc, int):
            return classes * ipc
        return ipc["default"] * classes + sum(
            count - ipc["default"] for name, count in ipc.items() if name != "default"
        )


class EvaluateSettings(Section):
    """Probe protocols (``clpdd.probe``)."""

    protocols: Annotated[list[Protocol], Field(min_length=1), AfterValidator(once)] = ["sgd", "closed_form"]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    random_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    epochs: Positive = 1000
    learning_rate: PositiveReal = 1e-3
    views: Count = 100
    augment: AugmentSettings = AugmentSettings()
    ridge: PositiveReal = 1.0
    encoder_batch: Positive = 256
    precision: Precision = "auto"


class BenchmarkSettings(Section):
    """Methods against each other by the clock (``clpdd.comparison``)."""

    encoders: Annotated[list[str], AfterValidator(once)] = []
    methods: Annotated[list[str], Field(min_length=1), AfterValidator(once)] = [
        "clp",
        "lgm",
        "clp-no-dsa",
        "lgm-no-dsa",
        "random",
        "centroid",
        "full",
    ]
    images_per_class: Annotated[list[PerClass], Field(min_length=1), AfterValidator(once)] = [1]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 2
    steps: Positive | None = 100
    halvings: Annotated[int, Field(ge=0, le=16)] = 3
    peers: dict[str, str] = {"lgm": "clp", "lgm-no-dsa": "clp-no-dsa"}
    time_factor: Annotated[float, Field(ge=1, le=1000)] = 10.0
    probe_seeds: Annotated[int, Field(ge=1, le=1000)] = 2
    views: Count = 20
    ablations: Annotated[list[Ablation], AfterValidator(once)] = list(get_args(Ablation))
    temperatures: Annotated[list[PositiveReal], Field(min_length=1), AfterValidator(once)] = [0.02, 0.05, 0.1, 0.3, 1.0]
    ridges: Annotated[list[NonNegativeReal], Field(min_length=1), AfterValidator(once)] = [0.1, 0.3, 1.0, 3.0, 10.0]

    @model_validator(mode="after")
    def _peers_known(self) -> Self:
        for peer, reference in self.peers.items():
            if peer in self.methods and reference not in self.methods:
                raise ValueError(
                    f"peers gives {peer} {self.time_factor:g} times the time of {reference}, which methods does not "
                    f"list: list it, or take {peer} out"
                )
            if peer in self.methods and self.methods.index(peer) < self.methods.index(reference):
                raise ValueError(f"methods lists {peer} before {reference}, whose time it is given: swap them")
        return self


class ReportSettings(Section):
    """What the page shows."""

    images_per_row: Positive = 10
    max_classes: Annotated[int, Field(ge=2, le=1000)] = 20


class RuntimeSettings(Section):
    """Where and how to compute; never what."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    features: Literal["auto", "device", "host", "stream"] = "auto"
    state: Literal["auto", "device", "host"] = "auto"
    memory: NonNegativeReal = 0
    deterministic: bool = True
    wait_seconds: NonNegativeReal = 0
