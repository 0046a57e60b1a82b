"""The section ``dataset``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ..catalogue.datasets import PLACED_BY_SPLIT, entry
from .domains import OpenShare, Positive, Section

__all__ = ["DatasetSettings", "SplitLimits"]

# The tags in brackets keep problems of the one form free of the other's: the explanation leaves them out.
Paths = Annotated[
    Annotated[str, Tag("[one]")] | Annotated[list[str], Tag("[several]")],
    Discriminator(lambda value: "[several]" if isinstance(value, list) else "[one]"),
]


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


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
    train: Paths | None = None
    validation: Paths | None = None
    test: Paths | None = None
    image_column: str = "image"
    label_column: str = "label"
    group_column: str | None = None
    class_names: list[str] | None = None
    validation_fraction: OpenShare = 0.1
    test_fraction: OpenShare = 0.2
    max_per_class: SplitLimits = SplitLimits()
    bad_images: Literal["error", "skip"] = "error"
    empty_classes: Literal["error", "drop"] = "error"
    duplicates: Literal["error", "drop", "allow"] = "error"
    store: Literal["auto", "bytes", "paths"] = "auto"
    watch: Literal["stat", "bytes"] = "stat"
    max_pixels: Positive = 50_000_000

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        entry(name)
        return name

    @model_validator(mode="after")
    def _sources(self) -> Self:
        known = entry(self.name)
        layout = known.layout
        given = [name for name in ("train", "validation", "test") if getattr(self, name) is not None]
        by_split = layout in PLACED_BY_SPLIT
        if given and not by_split:
            raise ValueError(
                f"{given[0]} is for the datasets {_listed(PLACED_BY_SPLIT)}; {self.name} brings its own images"
            )
        if by_split and self.train is None:
            raise ValueError(f"train is needed by the dataset {self.name}: give the path of the training images")
        if self.root is not None and (by_split or known.root == "none"):
            raise ValueError(f"root is not for the dataset {self.name}{': use train' if by_split else ''}")
        if self.root is None and not by_split and known.root == "needed":
            raise ValueError(f"root is needed by the dataset {self.name}: give the folder its files lie in")
        if self.download and layout != "torchvision":
            raise ValueError(f"download is for datasets of torchvision; fetch {self.name} yourself and set root")
        if self.group_column is not None and layout not in ("parquet", "webdataset", "hf"):
            raise ValueError(f"group_column is for the datasets parquet, webdataset and hf:NAME, not for {self.name}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names holds a name twice")
        return self
