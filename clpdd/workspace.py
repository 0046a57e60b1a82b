"""The pipeline for notebooks: an encoder and a folder, each step on call, what exists is not made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .config.cache import CacheSettings
from .config.dataset import DatasetSettings
from .config.distill import DistillSettings
from .config.evaluate import EvaluateSettings
from .config.kernels import KernelSettings
from .config.runtime import RuntimeSettings
from .config.settings import Settings
from .config.variants import MethodVariant
from .datasets.build import build_index
from .distilled.dataset import DistilledSet
from .encoders.encoder import Encoder
from .encoders.loading import load_encoder
from .errors import ArtifactError
from .features.kernels import Kernels
from .optimise.context import OnProgress, Watch
from .stages.cache import cache_features
from .stages.distill import distill
from .stages.evaluate import evaluate, evaluation_data
from .stages.kernels import compute_kernels
from .stages.project import Project, Run
from .storage.files import read_json, write_json
from .storage.layout import SPLITS, Layout

__all__ = ["Workspace"]


class Workspace:
    """A folder of artifacts and one encoder.

    What a step needs is made first, and made again when the index, the encoder or settings have changed; what is there
    already is found in no time. Files that were indexed are not watched: remove ``folder/index`` after changing them.
    A killed cell is continued by running it again.

    Args:
        folder: where the artifacts go, in the layout of the pipeline's ``data/``.
        encoder: an ``Encoder``, or a timm name.
        dataset: what to index; ``None`` takes the index that lies in ``folder/index`` (``clpdd.index_arrays``).
        cache: settings of this step; ``None`` takes the defaults.
        kernels: likewise.

    Raises:
        ArtifactError: ``dataset`` is ``None`` and there is no index.
    """

    def __init__(
        self,
        folder: Path | str,
        encoder: Encoder | str,
        dataset: DatasetSettings | None = None,
        *,
        cache: CacheSettings | None = None,
        kernels: KernelSettings | None = None,
        seed: int = 0,
    ) -> None:
        self.layout = Layout(Path(folder))
        self.encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        self.cache_settings = cache or CacheSettings()
        self.kernel_settings = kernels or KernelSettings()
        self.seed = seed
        # a decoding process would need the caller's script to be importable, which a notebook is not
        self.run = Run(work=self.layout.work, clocks=self.layout.clocks, runtime=RuntimeSettings(workers=0))
        self._index(dataset)

    def _index(self, dataset: DatasetSettings | None) -> None:
        train = self.layout.index("train")
        if dataset is None:
            if not train.exists():
                raise ArtifactError(f"{train} does not exist: pass a dataset, or make it with clpdd.index_arrays")
            return
        wanted = {"dataset": dataset.model_dump(mode="json"), "seed": self.seed}
        note = self.layout.work / "index" / "settings.json"
        if not (train.exists() and note.exists() and read_json(note) == wanted | self._stamps()):
            build_index(dataset, self.seed, train.parent)
            write_json(note, wanted | self._stamps())

    def _stamps(self) -> dict[str, Any]:
        """Sizes and times of the indexes: another hand may have made them since, ``clpdd.index_arrays`` say."""
        found = {split: self.layout.index(split).stat() for split in SPLITS if self.layout.index(split).exists()}
        return {"indexes": {split: [status.st_size, status.st_mtime_ns] for split, status in found.items()}}

    def cache(self) -> dict[str, Path]:
        """Features of every split: their stores."""
        stores = {split: self.layout.features(self.encoder.name, split) for split in SPLITS}
        for split, target in stores.items():
            cache_features(self.layout.index(split), self.encoder, self.cache_settings, target, self.run)
        return stores

    def kernels(self) -> Kernels:
        """Moments and the full-data probe."""
        stores = self.cache()
        target = self.layout.kernels(self.encoder.name)
        return compute_kernels(stores["train"], stores["validation"], self.kernel_settings, target, self.run)

    def distill(
        self, method: str = "clp", settings: DistillSettings | None = None, on_progress: OnProgress | None = None
    ) -> DistilledSet:
        """Distil with one method; the set is also in ``folder/distilled``."""
        self.kernels()
        return distill(
            MethodVariant(method, method, settings or DistillSettings()),
            Project(Settings(), self.layout).training(self.encoder.name),
            self.encoder,
            self.layout.distilled(self.encoder.name, method),
            seed=self.seed,
            run=self.run,
            watch=Watch(on_progress=on_progress),
        )

    def evaluate(self, *methods: str, settings: EvaluateSettings | None = None) -> dict[str, dict[str, float]]:
        """Mean test top-1 in percent by method and protocol, of sets distilled before."""
        name = self.encoder.name
        self.cache()
        paths = evaluate(
            {(name, method): self.layout.distilled(name, method) for method in methods},
            {name: evaluation_data(self.layout, name, self.encoder)},
            settings or EvaluateSettings(),
            self.layout.results,
            seed=self.seed,
            run=self.run,
        )
        scores: dict[str, dict[str, list[float]]] = {}
        for row in pq.read_table(paths["results.parquet"]).to_pylist():
            protocol = f"{row['protocol']} ({row['views']})"
            scores.setdefault(row["method"], {}).setdefault(protocol, []).append(row["top1"])
        return {method: {p: sum(v) / len(v) for p, v in by.items()} for method, by in scores.items()}
