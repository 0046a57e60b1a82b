"""Where every artifact lies below the data folder: the one place that knows the names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SPLITS", "Layout"]

SPLITS = ("train", "validation", "test")
"""Splits in the order of their use. Only evaluation may open ``test``."""


@dataclass(frozen=True)
class Layout:
    """Paths of the artifacts below ``root`` (usually ``data/``)."""

    root: Path

    @property
    def dataset_inputs(self) -> Path:
        """What was seen of the images that the index is made from."""
        return self.root / "inputs" / "dataset.json"

    def encoder_inputs(self, encoder: str) -> Path:
        """What was seen of an encoder's local weights, and versions that decide its features."""
        return self.root / "inputs" / "encoders" / f"{encoder}.json"

    @property
    def made(self) -> list[Path]:
        """Every folder that the pipeline writes in."""
        names = (
            "inputs",
            "index",
            "features",
            "kernels",
            "distilled",
            "results",
            "benchmark",
            "work",
            "clocks",
            "live",
        )
        return [self.root / name for name in names]

    def index(self, split: str) -> Path:
        """Parquet index of a split."""
        return self.root / "index" / f"{split}.parquet"

    @property
    def indexes(self) -> dict[str, Path]:
        """The index of every split."""
        return {split: self.index(split) for split in SPLITS}

    def features(self, encoder: str, split: str) -> Path:
        """Zarr group with the features of a split."""
        return self.root / "features" / encoder / f"{split}.zarr"

    def kernels(self, encoder: str) -> Path:
        """Folder with moments, spectrum and the full-data probe."""
        return self.root / "kernels" / encoder

    def distilled(self, encoder: str, method: str) -> Path:
        """Folder of a distilled dataset."""
        return self.root / "distilled" / encoder / method

    @property
    def results(self) -> Path:
        """Folder of the result table, metrics and the report."""
        return self.root / "results"

    def comparison(self, encoder: str) -> Path:
        """Folder of the tables of a comparison of methods and of ablations, and of their page."""
        return self.root / "benchmark" / encoder

    @property
    def work(self) -> Path:
        """Git-ignored folder of partial work."""
        return self.root / "work"

    @property
    def clocks(self) -> Path:
        """Git-ignored folder of clock and memory readings: they differ from run to run, artifacts do not."""
        return self.root / "clocks"
