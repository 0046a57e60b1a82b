"""The pipeline for notebooks: an encoder and a folder, each step on call, what exists is not made again."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from .config import CacheSettings, DatasetSettings, DistillSettings, EvaluateSettings, KernelSettings
from .datasets import build_index
from .distill import distill
from .distilled import DistilledSet
from .encoders import Encoder, load_encoder
from .evaluation import evaluate
from .features import cache_features
from .kernels import Kernels, compute_kernels
from .layout import SPLITS, Layout
from .methods import OnProgress

__all__ = ["Workspace"]


class Workspace:
    """A folder of artifacts and one encoder.

    Features and kernels are made when something first needs them; a killed cell is continued by running it again.

    Args:
        folder: where the artifacts go, in the layout of the pipeline's ``data/``.
        encoder: an ``Encoder``, or a timm name.
        dataset: what to index, unless ``folder/index`` holds an index already (``clpdd.index_arrays``).
    """

    def __init__(
        self, folder: Path | str, encoder: Encoder | str, dataset: DatasetSettings | None = None, seed: int = 0
    ) -> None:
        self.layout = Layout(Path(folder))
        self.encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        self.seed = seed
        if dataset is not None or not self.layout.index("train").exists():
            build_index(dataset or DatasetSettings(), seed, self.layout.index("train").parent)

    def cache(self, settings: CacheSettings | None = None) -> None:
        """Features of every split (only what is missing or was made otherwise)."""
        for split in SPLITS:
            target = self.layout.features(self.encoder.name, split)
            index = self.layout.index(split)
            cache_features(index, self.encoder, settings or CacheSettings(), target, self.layout.work)

    def kernels(self, settings: KernelSettings | None = None) -> Kernels:
        """Moments and the full-data probe."""
        name = self.encoder.name
        if not self.layout.features(name, "train").exists():
            self.cache()
        return compute_kernels(
            self.layout.features(name, "train"),
            self.layout.features(name, "validation"),
            settings or KernelSettings(),
            self.layout.kernels(name),
            self.layout.work,
        )

    def distill(
        self, method: str = "clp", settings: DistillSettings | None = None, on_progress: OnProgress | None = None
    ) -> DistilledSet:
        """Distil with one method; the set is also in ``folder/distilled``."""
        name = self.encoder.name
        if not self.layout.kernels(name).exists():
            self.kernels()
        return distill(
            method,
            index=self.layout.index("train"),
            train=self.layout.features(name, "train"),
            validation=self.layout.features(name, "validation"),
            kernels=self.layout.kernels(name),
            encoder=self.encoder,
            target=self.layout.distilled(name, method),
            work_root=self.layout.work,
            settings=settings,
            seed=self.seed,
            on_progress=on_progress,
        )

    def evaluate(self, *methods: str, settings: EvaluateSettings | None = None) -> dict[str, dict[str, float]]:
        """Mean test top-1 in percent by method and protocol, of sets distilled before."""
        name = self.encoder.name
        paths = evaluate(
            {(name, method): self.layout.distilled(name, method) for method in methods},
            {name: self.encoder},
            {name: {split: self.layout.features(name, split) for split in SPLITS}},
            {name: self.layout.kernels(name)},
            settings or EvaluateSettings(),
            self.seed,
            self.layout.results,
            self.layout.work,
            self.layout.clocks,
        )
        scores: dict[str, dict[str, list[float]]] = {}
        for row in pq.read_table(paths["results.parquet"]).to_pylist():
            protocol = f"{row['protocol']} ({row['views']})"
            scores.setdefault(row["method"], {}).setdefault(protocol, []).append(row["top1"])
        return {method: {p: sum(v) / len(v) for p, v in by.items()} for method, by in scores.items()}
