"""What each command does. Called by ``clpdd.cli.main`` with the parsed arguments.

Each command imports what it needs: ``clpdd --help`` and refusals of bad settings must not wait for torch.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..distributed.launch import connect
from ..errors import DataError, SettingsError
from ..storage.files import try_writing
from .arguments import options_of_encoder

if TYPE_CHECKING:
    from ..config.settings import Settings
    from ..encoders.encoder import Encoder
    from ..features.store import FeatureStore
    from ..stages.project import Project

__all__ = [
    "ablate",
    "benchmark",
    "cache",
    "distill",
    "draw",
    "dry_run",
    "evaluate",
    "export",
    "features",
    "index",
    "inputs",
    "kernels",
    "onnx",
    "predict",
    "preset",
    "pretrain",
    "probe",
    "refuse_settings",
    "report",
    "results",
    "score",
]

log = logging.getLogger(__name__)


_WITH_SETTINGS = (
    "dry-run",
    "index",
    "cache",
    "kernels",
    "distill",
    "evaluate",
    "benchmark",
    "ablate",
    "score",
    "features",
)
"""Commands that cannot do without a settings file, and import torch."""


def refuse_settings(options: argparse.Namespace) -> None:
    """Raise ``SettingsError`` for what a command would refuse in its settings file, before torch is imported."""
    from ..config.loading import load_settings

    if options.command not in _WITH_SETTINGS:
        return
    settings = load_settings(options.params)
    given = getattr(options, "encoder", None) or []
    for encoder in [given] if isinstance(given, str) else given:
        settings.refuse_unlisted_encoder(encoder)
        if options.command != "features":  # which reads what is cached, and loads no encoder
            settings.members(encoder)  # refuses one that lacks weights
    if getattr(options, "method", None) is not None:
        settings.variant(options.method)


def preset(options: argparse.Namespace) -> None:
    from .cost import ASSUMED_IN_WORDS, described, estimate
    from .presets import apply_preset, preset_table

    if options.name:
        settings = apply_preset(options.name, options.params, options.presets, options.root, options.published)
        print(f"{options.params} now holds {options.name}: {described(estimate(settings))}")
        print(f"(estimated for {ASSUMED_IN_WORDS})")
    else:
        print(preset_table(options.presets))


def dry_run(options: argparse.Namespace) -> None:
    import tempfile

    from ..config.loading import load_settings
    from .cost import described
    from .dry_run import dry_run

    settings = load_settings(options.params)
    with tempfile.TemporaryDirectory(prefix="clpdd-dry-run-") as folder:
        _, cost = dry_run(settings, Path(folder))
    print(f"expected at that speed: {described(cost)}" if cost else "no cost: how many images there are is not known")


def inputs(options: argparse.Namespace) -> None:
    from ..config.loading import load_settings
    from ..stages.inputs import run_inputs
    from ..storage.layout import Layout
    from .dvc_params import refuse_missing_sections

    settings = load_settings(options.params)
    if "DVC_STAGE" in os.environ and Path(options.params) == Path("params.yaml"):  # DVC runs this, and follows that
        refuse_missing_sections(Path("params.yaml"), Path("dvc.yaml"))
    run_inputs(settings, Layout(options.data), code=options.code)


def index(options: argparse.Namespace) -> None:
    from ..stages.index import run_index
    from ..stages.project import open_project

    run_index(open_project(options.params, options.data))


def cache(options: argparse.Namespace) -> None:
    from ..stages.cache import run_cache
    from ..stages.project import open_project

    with connect() as ranks:
        run_cache(open_project(options.params, options.data, ranks), options.encoder)


def kernels(options: argparse.Namespace) -> None:
    from ..stages.kernels import run_kernels
    from ..stages.project import open_project

    run_kernels(open_project(options.params, options.data), options.encoder)


def distill(options: argparse.Namespace) -> None:
    from ..optimise.context import Watch
    from ..stages.distill import run_distill
    from ..stages.project import open_project
    from .dvclive_log import live_log

    with connect() as ranks:
        project = open_project(options.params, options.data, ranks)
        watched = project.layout.root / "live" / options.encoder / options.method
        with live_log(watched) if ranks.is_main else contextlib.nullcontext() as log:
            run_distill(project, options.encoder, options.method, Watch(on_progress=log))


def evaluate(options: argparse.Namespace) -> None:
    from ..stages.evaluate import run_evaluate
    from ..stages.project import open_project

    run_evaluate(open_project(options.params, options.data))


def benchmark(options: argparse.Namespace) -> None:
    from ..benchmark.stage import benchmark

    _compare(options, benchmark)


def ablate(options: argparse.Namespace) -> None:
    from ..benchmark.stage import ablate

    _compare(options, ablate)


def _compare(options: argparse.Namespace, run: Callable[[Project, str, str], Path]) -> None:
    from ..stages.project import open_project

    project = open_project(options.params, options.data)
    encoder = options.encoder or project.settings.encoders[0]
    where = ["--params", str(options.params), "--data", str(options.data)]
    command = shlex.join(["clpdd", *where, options.command, "--encoder", encoder])  # to be given again
    log.info("page: %s", run(project, encoder, command).resolve())


def draw(options: argparse.Namespace) -> None:
    from ..benchmark.page import write_comparison

    log.info("page: %s", write_comparison(options.tables, options.out).resolve())


def report(options: argparse.Namespace) -> None:
    from ..config.loading import load_settings
    from ..stages.report import update_report
    from ..storage.layout import Layout

    paths = update_report(Layout(options.data), load_settings(options.params))
    log.info("report: %s", paths["report.html"].resolve())


def results(options: argparse.Namespace) -> None:
    from ..config.loading import load_settings
    from ..report.table import result_csv, result_json, result_table
    from ..stages.report import page_is_current, update_report
    from ..storage.layout import Layout

    settings, layout = load_settings(options.params), Layout(options.data)
    if not page_is_current(layout):  # DVC brought results back from its cache, but keeps no page
        update_report(layout, settings)
    form = result_json if options.json else result_csv if options.csv else result_table
    print(form(layout))


def score(options: argparse.Namespace) -> None:
    from ..stages.project import open_project
    from ..stages.score import run_score, score_json, score_table

    project = open_project(options.params, options.data)
    encoders = options.encoder or project.settings.encoders
    found = run_score(project, options.images, encoders, worth=options.worth, random=options.random)
    print((score_json if options.json else score_table)(found))


def _encoder(options: argparse.Namespace, settings: Settings, name: str) -> Encoder:
    from ..config.encoder import EncoderOptions
    from ..encoders.loading import load_encoder, resolve_device

    given = options_of_encoder(options)
    own = settings.encoder_options.get(name, EncoderOptions())
    if own.members is not None and given:
        option = "--" + next(iter(given)).replace("_", "-")
        raise SettingsError(f"{option} is for a single encoder, and {name} joins several: set it in encoder_options")
    options_of = settings.encoder_options | {name: own.model_copy(update=given)}
    known = settings.model_copy(update={"encoder_options": options_of})
    return load_encoder(**known.encoder_arguments(name), device=resolve_device(settings.runtime.device))


def _settings(options: argparse.Namespace) -> Settings:
    """The settings file, or the defaults where there is none: these commands are used far from the project, too."""
    from ..config.loading import load_settings
    from ..config.settings import Settings

    default = not options.named and not options.params.exists()
    return Settings() if default else load_settings(options.params)


def probe(options: argparse.Namespace) -> None:
    settings = _settings(options)  # refused before torch is imported
    from ..distilled.dataset import DistilledSet
    from ..probe.classifier import chosen_in_words, train_classifier
    from ..storage.layout import Layout

    data = DistilledSet.load(options.distilled)
    made_with = data.info.get("encoder", {})
    name = options.encoder or str(made_with.get("name"))
    joined = [member["name"] for member in made_with.get("members", ())]
    if joined and options.encoder is None and name not in settings.encoder_options:
        raise SettingsError(
            f"the set was distilled with {name}, which joins {', '.join(joined)}, and {options.params} does not define "
            f"it: run where encoder_options does, or choose one by --encoder"
        )
    try_writing(options.out)
    encoder = _encoder(options, settings, name)
    store = None
    if options.protocol == "best":  # beside the set, wherever it lies: ROOT/distilled/ENCODER/METHOD
        roots = [options.data, *options.distilled.resolve().parents[2:3]]
        store = _validation([Layout(root).features(encoder.name, "validation") for root in roots])
    made = train_classifier(
        data, encoder, settings.evaluate, protocol=options.protocol, validation=store, seed=settings.seed
    )
    made.save(options.out)
    log.info("%s", chosen_in_words(made))
    log.info("classifier of %d classes: %s", data.classes, options.out)


def _validation(stores: Sequence[Path]) -> FeatureStore | None:
    """The first of the stores that is there."""
    from ..features.store import FeatureStore

    return next((FeatureStore.open(path) for path in stores if path.exists()), None)


def predict(options: argparse.Namespace) -> None:
    import csv

    settings = _settings(options)  # refused before torch is imported
    from ..probe.classifier import Classifier, classify_files, find_images
    from ..probe.confusion import class_of, confusion_in_words

    files, classifier = find_images(options.images), Classifier.load(options.classifier)
    encoder = _encoder(options, settings, classifier.encoder["name"])
    classifier.check(encoder)  # before a line is written
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths come out as the bytes they are, whatever the locale
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    writer, unread = csv.writer(sys.stdout, lineterminator="\n"), 0
    top = min(options.top, len(classifier.class_names))
    columns = [f"{what}{rank}" for rank in range(1, top + 1) for what in ("class", "probability")]
    writer.writerow(["path", *columns])
    taken: list[tuple[str, str]] = []
    for found in classify_files(classifier, encoder, files, top=top, max_pixels=settings.dataset.max_pixels):
        if found.problem is not None:
            unread += 1
            log.warning("%s", found.problem)
        true = class_of(found.path, options.images, classifier.class_names)
        if true is not None and found.classes:
            taken.append((true, found.classes[0]))
        pairs = zip(found.classes, found.probabilities, strict=True)
        values = [value for name, share in pairs for value in (name, f"{share:.4f}")]
        writer.writerow([found.path, *(values or [""] * len(columns))])
    if taken:
        log.info("%s", confusion_in_words(taken, len(files) - unread - len(taken), classifier.class_names))
    if unread:
        raise DataError(f"{unread} of {len(files)} files could not be read; the others are classified")


def onnx(options: argparse.Namespace) -> None:
    from ..probe.classifier import Classifier
    from ..probe.onnx import require_onnx, write_onnx

    require_onnx()
    classifier = Classifier.load(options.classifier)
    try_writing(options.out)
    encoder = None
    if options.with_encoder:
        encoder = _encoder(options, _settings(options), classifier.encoder["name"])
    difference = write_onnx(classifier, options.out, encoder)
    what = f"{classifier.encoder['name']} and the probe" if options.with_encoder else "the probe alone"
    taken = "pixels from 0 to 1, which it normalises itself" if options.with_encoder else "features"
    log.info("%s (input: %s): %s", what, taken, options.out)
    log.info("checked: onnxruntime's probabilities differ from torch's by %.0e at most", max(difference, 1e-9))


def export(options: argparse.Namespace) -> None:
    from ..distilled.export import export

    log.info("written: %s", export(options.distilled, options.to, options.out, options.draw))


def features(options: argparse.Namespace) -> None:
    from ..features.store import FeatureStore
    from ..features.table import write_features
    from ..stages.project import open_project
    from ..storage.layout import SPLITS

    project = open_project(options.params, options.data)
    encoder = options.encoder or project.settings.encoders[0]
    try_writing(options.out)
    splits = [split for split in SPLITS if split in (options.split or SPLITS)]
    stores = [FeatureStore.open(project.layout.features(encoder, split)) for split in splits]
    write_features(stores, options.out)
    counts = ", ".join(f"{len(store):,} {store.split}" for store in stores)
    log.info("%d features of each image by %s (%s): %s", stores[0].dim, encoder, counts, options.out)


def pretrain(options: argparse.Namespace) -> None:
    import dataclasses

    from ..encoders.pretrain import Recipe, load_images, pretrain

    try_writing(options.out)
    images, labels = load_images(options.images)
    pretrain(images, labels, options.out, options.architecture, dataclasses.replace(Recipe(), epochs=options.epochs))
