"""The pipeline for notebooks: an encoder and a folder, each step on call, what exists is not made again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config.cache import CacheSettings
from .config.dataset import DatasetSettings
from .config.distill import DistillSettings
from .config.evaluate import EvaluateSettings
from .config.kernels import KernelSettings
from .config.settings import Settings
from .config.variants import MethodVariant
from .datasets.index import Index
from .datasets.watch import look
from .distilled.dataset import DistilledSet
from .distilled.export import FORMATS, export
from .encoders.encoder import Encoder
from .encoders.loading import load_encoder
from .errors import ArtifactError, SettingsError
from .features.decoders import Decoders
from .features.kernels import Kernels
from .features.store import FeatureStore
from .optimise.context import OnProgress, Watch
from .probe.classifier import Classifier, Prediction, chosen_in_words, classify_files, find_images, train_classifier
from .report.recovered import recovered_settings
from .report.results import Results
from .report.shown import ShownFeatures, ShownKernels
from .runtime.notebook import html_table
from .stages.cache import cache_features
from .stages.distill import distill
from .stages.evaluate import evaluate, evaluation_data
from .stages.index import index_images
from .stages.inputs import news_of_images, remember_images
from .stages.kernels import compute_kernels
from .stages.project import Project, Run
from .stages.report import write_report
from .stages.score import judge_images, score_lines
from .storage.files import read_json, write_json
from .storage.layout import SPLITS, Layout

__all__ = ["Workspace"]

log = logging.getLogger(__name__)


class Workspace:
    """A folder of artifacts and one encoder.

    What a step needs is made first, and made again when the images, the encoder or settings have changed; what is there
    already is found in no time. Every step looks whether the files that were indexed are what they were
    (``dataset.watch``), and says so where they are not. A killed cell is continued by running it again.

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
        self.run = Run(work=self.layout.work, clocks=self.layout.clocks)
        self.dataset = dataset
        self._index()

    def _index(self) -> None:
        """Make the index, unless it is there and all that it was made from is what it was."""
        train, dataset = self.layout.index("train"), self.dataset
        if dataset is None:
            if not train.exists():
                raise ArtifactError(f"{train} does not exist: pass a dataset, or make it with clpdd.index_arrays")
            return
        seen = look(dataset, made=self.layout.made)
        settings = dataset.model_dump(mode="json", exclude={"watch"})
        wanted = {"dataset": settings, "seed": self.seed, "images": seen.summary()}
        note = self.layout.work / "index" / "settings.json"
        if train.exists() and note.exists() and read_json(note) == wanted | self._stamps():
            return
        for line in news_of_images(self.layout, seen):
            log.warning("%s: the index and all that follows are made again", line)
        index_images(dataset, self.seed, self.layout, self.run)
        write_json(note, wanted | self._stamps())
        remember_images(self.layout, seen)

    def _stamps(self) -> dict[str, Any]:
        """Sizes and times of the indexes: another hand may have made them since, ``clpdd.index_arrays`` say."""
        found = {split: self.layout.index(split).stat() for split in SPLITS if self.layout.index(split).exists()}
        return {"indexes": {split: [status.st_size, status.st_mtime_ns] for split, status in found.items()}}

    def cache(self) -> dict[str, Path]:
        """Features of every split: their stores."""
        self._index()
        stores = {split: self.layout.features(self.encoder.name, split) for split in SPLITS}
        with Decoders() as decoders:
            for split, target in stores.items():
                index = self.layout.index(split)
                cache_features(index, self.encoder, self.cache_settings, target, self.run, decoders=decoders)
        return stores

    def kernels(self) -> Kernels:
        """Moments and the full-data probe."""
        stores = self.cache()
        target = self.layout.kernels(self.encoder.name)
        made = compute_kernels(stores["train"], stores["validation"], self.kernel_settings, target, self.run)
        return ShownKernels.of(made)

    def distill(
        self, method: str = "clp", settings: DistillSettings | None = None, on_progress: OnProgress | None = None
    ) -> DistilledSet:
        """Distil with one method; the set is also in ``folder/distilled``."""
        self.kernels()
        made = distill(
            MethodVariant(method, method, settings or DistillSettings()),
            Project(Settings(), self.layout).training(self.encoder.name),
            self.encoder,
            self.layout.distilled(self.encoder.name, method),
            seed=self.seed,
            run=self.run,
            watch=Watch(on_progress=on_progress),
        )
        write_json(self._made_from(method), {"index": Index.open(self.layout.index("train")).digest})
        return made

    def _made_from(self, method: str) -> Path:
        """The note of which images a distilled set was made from."""
        return self.layout.work / "distill" / f"{self.encoder.name}-{method}" / "index.json"

    def _refuse_older(self, methods: Sequence[str]) -> None:
        """Raise ``ArtifactError`` for a set that was distilled before the images changed."""
        now = {"index": Index.open(self.layout.index("train")).digest}
        for method in methods:
            note = self._made_from(method)
            if note.exists() and read_json(note) != now:
                raise ArtifactError(
                    f"the set of {method} was distilled from other images than are indexed now: distill it again, "
                    f'work.distill("{method}", settings)'
                )

    def evaluate(self, *methods: str, settings: EvaluateSettings | None = None) -> Results:
        """Judge sets distilled before on the test split.

        Returns:
            Mean test top-1 in percent by method and protocol, ``results["clp"]["sgd (bank-100)"]``, with a ``table``
            and a ``plot()``.

        Raises:
            ArtifactError: a set was distilled before the images changed, or never.
        """
        name = self.encoder.name
        self.cache()
        self._refuse_older(methods)
        evaluate(
            {(name, method): self.layout.distilled(name, method) for method in methods},
            {name: evaluation_data(self.layout, name, self.encoder)},
            settings or EvaluateSettings(),
            self.layout.results,
            seed=self.seed,
            run=self.run,
        )
        return self.results()

    # -- what the commands do ------------------------------------------------------------------------------------------

    def results(self) -> Results:
        """What ``evaluate`` found last. Raises ``ArtifactError`` when it has not been called yet."""
        return Results.of(self.layout)

    def score(
        self,
        images: Path | str,
        settings: EvaluateSettings | None = None,
        *,
        worth: bool = False,
        random: bool = False,
    ) -> list[dict[str, Any]]:
        """Judge images of any origin on the test split, as ``evaluate`` judges distilled sets.

        Args:
            images: a distilled folder, a folder of class folders, or a Parquet file; see ``clpdd.distilled.foreign``.
            settings: those of ``evaluate``.
            worth: whether to measure how many real images the set is worth.
            random: whether to judge as many random training images of every class, too.

        Returns:
            A mapping for each protocol and kind of views, percent: ``top1``, ``top1_std``, ``over_random`` and the
            other keys of ``stages.score.score_lines``.

        Raises:
            DataError: images that cannot be judged as they are.
        """
        self.kernels()
        name, dataset = self.encoder.name, self.dataset or DatasetSettings()
        found = judge_images(
            Path(images),
            name,
            evaluation_data(self.layout, name, self.encoder),
            settings or EvaluateSettings(),
            self.seed,
            dataset,
            worth=worth,
            random=(self.layout.index("train"), DistillSettings()) if random else None,
        )
        return score_lines(found)

    def report(self) -> Path:
        """Write the result page of what was evaluated last; its path, of one file that needs no network."""
        known: dict[str, Any] = {"seed": self.seed, "cache": self.cache_settings, "kernels": self.kernel_settings}
        known |= {} if self.dataset is None else {"dataset": self.dataset}
        settings = recovered_settings(self.layout, self.encoder.name, known)
        return write_report(self.layout, settings, encoder=lambda: self.encoder)["report.html"]

    def distilled(self, method: str = "clp") -> DistilledSet:
        """A set that was distilled before. Raises ``ArtifactError`` when there is none."""
        return DistilledSet.load(self.layout.distilled(self.encoder.name, method))

    def probe(
        self,
        method: str = "clp",
        settings: EvaluateSettings | None = None,
        *,
        protocol: str = "best",
        out: Path | str | None = None,
    ) -> Classifier:
        """A ready classifier from one distilled set alone.

        Args:
            method: of a set distilled before.
            settings: of the probe; those of ``evaluate``.
            protocol: ``"closed_form"``, ``"closed_form_clean"``, ``"sgd"``, or ``"best"``: the one of them that does
                best on validation images.
            out: a ``.safetensors`` file to write it to.
        """
        data, store = self.distilled(method), self.layout.features(self.encoder.name, "validation")
        validation = FeatureStore.open(store) if protocol == "best" and store.exists() else None
        made = train_classifier(data, self.encoder, settings, protocol=protocol, validation=validation, seed=self.seed)
        log.info("%s", chosen_in_words(made))
        if out is not None:
            made.save(out)
        return made

    def predict(self, *images: Path | str, classifier: Classifier | Path | str, top: int = 1) -> list[Prediction]:
        """The ``top`` likeliest classes of image files and of those in folders, in order.

        Args:
            images: files and folders.
            classifier: what ``probe`` returned, or the file it wrote.
        """
        known = classifier if isinstance(classifier, Classifier) else Classifier.load(classifier)
        return list(classify_files(known, self.encoder, find_images([Path(path) for path in images]), top=top))

    def export(self, method: str, to: str, out: Path | str) -> Path:
        """Write a distilled set in the form of another tool: ``huggingface``, ``folder``, ``webdataset``, or
        ``safetensors``. Its path.
        """
        if to not in FORMATS:
            raise SettingsError(f"to is {to!r}; it must be one of {', '.join(FORMATS)}")
        return export(self.layout.distilled(self.encoder.name, method), to, out)

    def features(self, split: str = "train") -> FeatureStore:
        """The features of a split, encoded if need be: ``work.features("train").features()`` is ``(N, d)``."""
        if split not in SPLITS:
            raise SettingsError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        return ShownFeatures.open(self.cache()[split])

    # -- how it shows itself -------------------------------------------------------------------------------------------

    def _methods(self) -> list[str]:
        """Names of the sets that were distilled with this encoder."""
        made = self.layout.distilled(self.encoder.name, "clp").parent
        return sorted(path.parent.name for path in made.glob("*/distilled.json"))

    def __repr__(self) -> str:
        methods = self._methods()
        told = f", distilled: {', '.join(methods)}" if methods else ""
        return f"Workspace({str(self.layout.root)!r}, {self.encoder.name}{told})"

    def _repr_html_(self) -> str:
        indexes = [Index.open(self.layout.index(split)) for split in SPLITS if self.layout.index(split).exists()]
        rows = [(f"{index.split} images", f"{len(index):,}") for index in indexes]
        rows += [("classes", f"{len(index.class_names):,}") for index in indexes[:1]]
        rows += [("encoder", f"{self.encoder.name}: {self.encoder.dim} features, images of {self.encoder.size} pixels")]
        rows += [("distilled", repr(self.distilled(method))) for method in self._methods()]
        names = [index.dataset for index in indexes[:1]]
        return html_table(("", ", ".join(names)), rows, f"Workspace {self.layout.root}")
