"""The sections of ``params.yaml`` as typed, immutable settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from ..errors import SettingsError
from .catalogue import PLACED_BY_SPLIT, entry
from .known import KNOWN_ENCODERS, Features

__all__ = [
    "AugmentSettings",
    "BenchmarkSettings",
    "CacheSettings",
    "DatasetSettings",
    "DistillSettings",
    "EncoderOptions",
    "EvaluateSettings",
    "KernelSettings",
    "ReportSettings",
    "RuntimeSettings",
    "Section",
    "SplitLimits",
    "once",
]

Positive = Annotated[int, Field(ge=1, le=2**31)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
PerClass = Annotated[int, Field(ge=1, le=10_000)]
Paths = str | list[str] | None


def _has_default(counts: dict[str, int]) -> dict[str, int]:
    if "default" not in counts:
        raise ValueError("a mapping needs default, the number of every class that it does not name")
    return counts


# The tags in brackets keep problems of the one form free of the other's: the explanation leaves them out.
PerClasses = Annotated[
    Annotated[PerClass, Tag("[one]")] | Annotated[dict[str, PerClass], AfterValidator(_has_default), Tag("[each]")],
    Discriminator(lambda value: "[each]" if isinstance(value, Mapping) else "[one]"),
]
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


class Section(BaseModel):
    """A part of the settings: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitLimits(Section):
    """Images per class kept of each split; ``None`` keeps all."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class DatasetSettings(Section):
    """Which labelled images, and how they are split."""

    name: str = "digits"
    title: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    root: str | None = None
    download: bool = False
    train: Paths = None
    validation: Paths = None
    test: Paths = None
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None
    class_names: list[str] | None = None
    validation_fraction: OpenShare = 0.1
    test_fraction: OpenShare = 0.2
    max_per_class: SplitLimits = SplitLimits()
    bad_images: Literal["error", "skip"] = "error"
    duplicates: Literal["error", "drop", "allow"] = "error"
    store: Literal["auto", "bytes", "paths"] = "auto"
    max_pixels: Positive = 50_000_000

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        entry(name)
        return name

    @model_validator(mode="after")
    def _sources(self) -> Self:
        layout = entry(self.name).layout
        given = [name for name in ("train", "validation", "test") if getattr(self, name) is not None]
        by_split = layout in PLACED_BY_SPLIT
        if given and not by_split:
            raise ValueError(f"{given[0]} is for the datasets parquet and folder; {self.name} brings its own images")
        if by_split and self.train is None:
            raise ValueError(f"train is needed by the dataset {self.name}: give the path of the training images")
        if self.root is not None and (by_split or layout == "digits"):
            raise ValueError(f"root is not for the dataset {self.name}{': use train' if by_split else ''}")
        if self.root is None and not by_split and layout not in ("digits", "hf"):
            raise ValueError(f"root is needed by the dataset {self.name}: give the folder its files lie in")
        if self.download and layout != "torchvision":
            raise ValueError(f"download is for datasets of torchvision; fetch {self.name} yourself and set root")
        if self.group_column is not None and layout not in ("parquet", "hf"):
            raise ValueError(f"group_column is for the datasets parquet and hf:NAME, not for {self.name}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names holds a name twice")
        return self


class EncoderOptions(Section):
    """How to build one encoder; whatever is ``None`` comes from timm's own configuration of the model."""

    model_config = ConfigDict(use_attribute_docstrings=True)  # the reference of the settings shows them

    model: str | None = None
    """timm model name, or ``hf-hub:OWNER/NAME``; null takes the encoder's name"""
    weights: str | None = None
    """local safetensors file; null takes the model's pre-trained weights"""
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None
    """side of the input in pixels; null takes the model's own, ViTs resize their position embeddings"""
    features: Features = "default"
    """what of a ViT's output: what the model itself gives, its class token, its mean patch token, or both joined"""
    members: Annotated[dict[str, PositiveReal], Field(min_length=2)] | None = None
    """several encoders as one: two or more names, each with its weight in the loss; nothing else stands beside it"""

    @model_validator(mode="after")
    def _joint_alone(self) -> Self:
        given = [name for name in ("model", "weights", "image_size") if getattr(self, name) is not None]
        given += ["features"] if self.features != "default" else []
        if self.members is not None and given:
            raise ValueError(
                f"{given[0]} is for a single encoder, and members makes a joint one: give it to the member that it is "
                f"meant for, under its own name in encoder_options"
            )
        return self

    def completed(self, name: str) -> EncoderOptions:
        """With what a short name of ``KNOWN_ENCODERS`` stands for, where it does and these options name no model.

        Raises ``SettingsError`` for an encoder whose weights must be brought and are not.
        """
        known = KNOWN_ENCODERS.get(name)
        if known is None or self.model is not None or self.members is not None:
            return self
        if known.own_weights and self.weights is None:
            raise SettingsError(
                f"encoder_options.{name}.weights is needed: {known.model}, which {name} is built as, has other weights "
                f"({known.note}); give a safetensors file"
            )
        own = {"model": known.model, "image_size": known.image_size, "features": known.features}
        return EncoderOptions.model_validate(own | self.model_dump(exclude_unset=True, exclude_none=True))


class CacheSettings(Section):
    """Encoding of the real images into Zarr."""

    dtype: Literal["float16", "float32"] = "float16"
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
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
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
                hint = f"near names: {', '.join(near)}" if near else f"classes are {', '.join(class_names[:5])}, ..."
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


def once(names: list[Any]) -> list[Any]:
    """``names``, or ``ValueError`` when one stands twice."""
    if len(set(names)) != len(names):
        raise ValueError(f"holds a name twice: {', '.join(map(str, names))}")
    return names


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
    deterministic: bool = True
    wait_seconds: NonNegativeReal = 0
