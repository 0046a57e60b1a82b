"""``params.yaml`` as typed settings: read once, refused by name, immutable afterwards."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import SettingsError

__all__ = [
    "AugmentSettings",
    "CacheSettings",
    "DatasetSettings",
    "DistillSettings",
    "EncoderOptions",
    "EvaluateSettings",
    "KernelSettings",
    "ReportSettings",
    "RuntimeSettings",
    "Settings",
    "SplitLimits",
    "load_settings",
    "parse_settings",
]

Positive = Annotated[int, Field(ge=1, le=2**31)]
Count = Annotated[int, Field(ge=0, le=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
PositiveReal = Annotated[float, Field(gt=0)]
NonNegativeReal = Annotated[float, Field(ge=0)]
Paths = str | list[str] | None
Method = Literal["clp", "random", "centroid", "full"]
Protocol = Literal["sgd", "closed_form"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SplitLimits(_Section):
    """Images per class kept of each split; ``None`` keeps all."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class DatasetSettings(_Section):
    """Which labelled images, and how they are split."""

    name: Literal["digits", "parquet", "folder"] = "digits"
    title: Annotated[str, Field(min_length=1, max_length=80)] | None = None
    train: Paths = None
    validation: Paths = None
    test: Paths = None
    image_column: str = "image"
    label_column: str = "label"
    class_names: list[str] | None = None
    validation_fraction: OpenShare = 0.1
    test_fraction: OpenShare = 0.2
    max_per_class: SplitLimits = SplitLimits()
    bad_images: Literal["error", "skip"] = "error"
    duplicates: Literal["error", "drop", "allow"] = "error"
    max_pixels: Positive = 50_000_000

    @model_validator(mode="after")
    def _sources(self) -> Self:
        given = [name for name in ("train", "validation", "test") if getattr(self, name) is not None]
        if self.name == "digits" and given:
            raise ValueError(f"{given[0]} is for the datasets parquet and folder; digits brings its own images")
        if self.name != "digits" and self.train is None:
            raise ValueError(f"train is needed by the dataset {self.name}: give the path of the training images")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names holds a name twice")
        return self


class EncoderOptions(_Section):
    """How to build one encoder; whatever is ``None`` comes from timm's own configuration of the model."""

    model: str | None = None
    weights: str | None = None
    image_size: Annotated[int, Field(ge=8, le=4096)] | None = None


class CacheSettings(_Section):
    """Encoding of the real images into Zarr."""

    dtype: Literal["float16", "float32"] = "float16"
    batch_size: Positive = 64
    workers: Annotated[int, Field(ge=0, le=256)] = 1
    chunk_rows: Positive = 512
    shard_rows: Positive = 8192

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows ({self.shard_rows}) must be a multiple of chunk_rows ({self.chunk_rows})")
        return self


class KernelSettings(_Section):
    """The one streamed pass over the features."""

    ridge_grid: Annotated[list[PositiveReal], Field(min_length=1)] = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
    block_rows: Positive = 8192
    nearest: Positive = 10


class AugmentSettings(_Section):
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


class DistillSettings(_Section):
    """How synthetic images are made (METHODS in ``clpdd.methods``)."""

    images_per_class: Annotated[int, Field(ge=1, le=10_000)] = 1
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
    encoder_batch: Positive = 512
    keep: Literal["best", "last"] = "best"
    validate_every: Positive = 50
    preview_every: Positive = 100
    checkpoint_every_steps: Positive = 100
    checkpoint_every_seconds: PositiveReal = 60


def _once(names: list[Any]) -> list[Any]:
    if len(set(names)) != len(names):
        raise ValueError(f"holds a name twice: {', '.join(map(str, names))}")
    return names


class EvaluateSettings(_Section):
    """Probe protocols (``clpdd.probe``)."""

    protocols: Annotated[list[Protocol], Field(min_length=1), AfterValidator(_once)] = ["sgd", "closed_form"]
    seeds: Annotated[int, Field(ge=1, le=1000)] = 5
    random_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    epochs: Positive = 1000
    learning_rate: PositiveReal = 1e-3
    views: Count = 100
    augment: AugmentSettings = AugmentSettings()
    ridge: PositiveReal = 1.0
    encoder_batch: Positive = 256


class ReportSettings(_Section):
    """What the page shows."""

    images_per_row: Positive = 10
    max_classes: Annotated[int, Field(ge=2, le=1000)] = 20


class RuntimeSettings(_Section):
    """Where and how to compute; never what."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=0, le=4096)] = 0
    wait_seconds: NonNegativeReal = 0


class Settings(_Section):
    """Everything in ``params.yaml``."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    dataset: DatasetSettings = DatasetSettings()
    encoders: Annotated[list[str], Field(min_length=1), AfterValidator(_once)] = ["clpdd_resnet14"]
    encoder_options: dict[str, EncoderOptions] = {}
    cache: CacheSettings = CacheSettings()
    kernels: KernelSettings = KernelSettings()
    methods: Annotated[list[Method], Field(min_length=1), AfterValidator(_once)] = ["clp", "random", "centroid", "full"]
    distill: DistillSettings = DistillSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        unused = sorted(set(self.encoder_options) - set(self.encoders))
        if unused:
            near = difflib.get_close_matches(unused[0], self.encoders, n=1)
            hint = f"did you mean {near[0]}?" if near else f"encoders lists {', '.join(self.encoders)}"
            raise ValueError(f"encoder_options names {unused[0]!r}, which encoders does not list; {hint}")
        ipc, central = self.distill.images_per_class, "centroid" in self.methods
        central = central or ("clp" in self.methods and self.distill.initialisation == "centroid")
        if central and ipc > self.kernels.nearest:
            raise ValueError(
                f"distill.images_per_class is {ipc}, but only kernels.nearest = {self.kernels.nearest} central images "
                f"per class are kept: raise kernels.nearest to at least {ipc}"
            )
        return self

    @field_validator("encoders")
    @classmethod
    def _folder_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name or name in {".", ".."} or any(c in name for c in "/\\:@ \0"):
                raise ValueError(
                    f"{name!r} names folders, so it must be free of / \\ : @ and spaces: give it a short name in "
                    f"encoder_options, e.g. encoder_options: {{mine: {{model: {name!r}}}}}, and list that name"
                )
        return names

    def options(self, encoder: str) -> EncoderOptions:
        """The options of one encoder; defaults when none are given."""
        return self.encoder_options.get(encoder, EncoderOptions())


class _Loader(yaml.SafeLoader):
    """YAML without tags (nothing is constructed but plain values) and without duplicate keys."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise SettingsError(f"line {line}: a key must be a plain word, got {key!r}")
        if key in seen:
            raise SettingsError(f"line {line}: the key {key!r} stands twice (first on line {seen[key]}): keep one")
        seen[key] = line
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


# YAML 1.1 reads 1e-3 as text, for want of a dot.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


# What PyYAML raises on broken text, and what its constructors trip over when a tag does not fit its value (!!int '').
_UNREADABLE = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def load_settings(path: Path | str = "params.yaml") -> Settings:
    """Read and check a settings file.

    Raises:
        SettingsError: naming the file and, for each problem, the key, the value, what is allowed and the nearest
            known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError(f"{path} does not exist: run in the project's folder, or pass --params FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as UTF-8 text: {error}") from error
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except _UNREADABLE as error:
        where = " ".join(str(error).split())
        raise SettingsError(f"{path} is not plain YAML: {where}") from error
    return parse_settings(values if values is not None else {}, source=str(path))


def parse_settings(values: Any, source: str = "settings") -> Settings:
    """Check a nested mapping of settings; missing keys take their defaults. Raises ``SettingsError``."""
    if not isinstance(values, dict):
        raise SettingsError(f"{source} must hold a mapping of settings, not {type(values).__name__}")
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise SettingsError(f"{source} has settings that cannot be used:\n{problems}") from None


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    section: Any = Settings
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields:
            section = section.model_fields[part].annotation
        elif section == dict[str, EncoderOptions]:
            section = EncoderOptions
        else:
            return []
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _explain(problem: Any) -> str:
    location = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    key = ".".join(str(part) for part in location) or "settings"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    value = repr(problem["input"])
    got = f" (got {value if len(value) <= 60 else value[:57] + '...'})" if problem["type"] != "value_error" else ""
    return f"{key}: {message[0].lower() + message[1:] if message[:5] == 'Input' else message}{got}"
