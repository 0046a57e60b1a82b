"""The ``clpdd`` command: one subcommand a stage. It parses, calls the library, and says errors in plain words."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from .distributed import connect, launched
from .errors import ClpddError, DataError, Preempted, ResourceError, SettingsError
from .files import explain_os_error, is_memory_error
from .preemption import on_signal

if TYPE_CHECKING:
    from .config import Settings
    from .encoders import Encoder
    from .stages import Project

__all__ = ["build_parser", "main"]

_OVER_RANKS = ("cache", "distill")  # commands that several processes may run together


def build_parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    parser = argparse.ArgumentParser(
        prog="clpdd", description="Dataset distillation for linear probes over frozen encoders."
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings file (default: params.yaml)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the artifacts (default: data)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    _prepare(add)
    add("index", _index, "labelled images to a Parquet index of each split")
    add("cache", _cache, "every split through a frozen encoder into Zarr").add_argument(
        "--encoder", required=True, help="name in encoders"
    )
    add("kernels", _kernels, "moments, spectrum and full-data probe of one encoder").add_argument(
        "--encoder", required=True, help="name in encoders"
    )
    distill = add("distill", _distill, "make a distilled dataset with one method and one encoder")
    distill.add_argument("--encoder", required=True, help="name in encoders")
    distill.add_argument("--method", required=True, help="name in methods")
    add("evaluate", _evaluate, "train probes on every distilled dataset and score them on the test split")
    for name, run, text in (
        ("benchmark", _benchmark, "compare methods by the clock, on test images (settings: benchmark)"),
        ("ablate", _ablate, "vary CLP-DD's choices one at a time, on validation features"),
    ):
        add(name, run, text).add_argument("--encoder", help="default: the first of encoders")
    draw = add("draw", _draw, "draw tables of benchmark and ablate as one page")
    draw.add_argument("tables", type=Path, nargs="+", help="Parquet files, of whatever datasets and encoders")
    draw.add_argument("--out", type=Path, required=True, help="HTML file to write")
    add("report", _report, "write the result page")
    add("results", _results, "print the result table")
    _hand_over(add)
    pretrain = add("pretrain", _pretrain, "train a small encoder from scratch, as the shipped one was")
    pretrain.add_argument("--images", required=True, nargs="+", help="Parquet files in Hugging Face layout")
    pretrain.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    pretrain.add_argument("--architecture", default="clpdd_resnet14", help="timm model name")
    pretrain.add_argument("--epochs", type=int, default=30, help="passes over the images (default: 30)")
    return parser


def _prepare(add: Callable[..., argparse.ArgumentParser]) -> None:
    preset = add("preset", _preset, "write a preset into the settings file, or list them with their expected cost")
    preset.add_argument("name", nargs="?", help="DATASET-ENCODER; without it, presets are listed")
    preset.add_argument("--presets", type=Path, default=Path("presets"), help="folder of presets (default: presets)")
    preset.add_argument("--root", help="folder the dataset's files lie in (default: the preset's)")
    text = "walk the settings through every stage with random weights: shapes, one step, speed, expected cost"
    add("dry-run", _dry_run, text)


def _hand_over(add: Callable[..., argparse.ArgumentParser]) -> None:
    probe = add("probe", _probe, "train a ready classifier from a distilled dataset alone")
    probe.add_argument("distilled", type=Path, help="folder of a distilled dataset")
    probe.add_argument("--encoder", help="default: the one it was distilled with")
    probe.add_argument("--protocol", choices=["sgd", "closed_form"], default="sgd", help="default: sgd")
    probe.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    predict = add("predict", _predict, "classify image files with a classifier made by probe")
    predict.add_argument("classifier", type=Path, help=".safetensors file made by probe")
    predict.add_argument("images", type=Path, nargs="+", help="image files and folders of them")
    predict.add_argument("--top", type=int, default=1, help="likeliest classes shown of each (default: 1)")
    for command in (probe, predict):
        command.add_argument("--model", help="timm model of the encoder (default: encoder_options, or its name)")
        command.add_argument("--weights", type=Path, help="safetensors file of its weights (default: as above)")
        command.add_argument("--image-size", type=int, help="input side in pixels (default: as above)")
    export = add("export", _export, "write a distilled dataset in the form of another tool")
    export.add_argument("distilled", type=Path, help="folder of a distilled dataset")
    export.add_argument(
        "--to", choices=["huggingface", "folder", "webdataset", "safetensors"], required=True, help="form to write"
    )
    export.add_argument("--out", type=Path, required=True, help="what to write; must not exist yet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code (see ``clpdd.errors``; 130 after Ctrl-C)."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("clpdd").setLevel(logging.INFO)
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        if launched().size > 1:
            if options.command not in _OVER_RANKS:
                raise SettingsError("runs in one process: start it without torchrun, and with WORLD_SIZE unset")
            on_signal(_stop)
        options.run(options)
    except ClpddError as error:
        print(f"clpdd {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            f"clpdd {options.command}: interrupted; finished work is kept, run the same command to go on",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        told = _refused_by_the_machine(error)
        if told is None:
            raise
        print(f"clpdd {options.command}: {told}", file=sys.stderr)
        return ResourceError.exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    return 0


def _refused_by_the_machine(error: BaseException | None) -> str | None:
    """What to say when the machine is at fault, wherever in a library the error came from; else ``None``."""
    while error is not None:  # Zarr and Arrow wrap what the system said
        if is_memory_error(error):
            return "memory ran out: lower the stage's batch sizes in params.yaml; finished work is kept"
        if isinstance(error, OSError) and error.errno:
            return f"{explain_os_error(error)}{f' ({error.filename})' if error.filename else ''}"
        error = error.__cause__ or error.__context__
    return None


def _stop(number: int, frame: FrameType | None) -> None:
    # No exception: raised in the middle of an import or a library's callback it is swallowed or leaves a traceback.
    # Leaving at once is safe, because files are written whole or not at all and workers end with their parent.
    told = f"stopped by {signal.Signals(number).name}; finished work is kept, run the same command to go on\n"
    os.write(2, f"clpdd: {told}".encode())
    os._exit(130 if number == signal.SIGINT else Preempted.exit_code)


# Each command imports what it needs: `clpdd --help` and refusals of bad settings must not wait for torch.


def _preset(options: argparse.Namespace) -> None:
    from .config import parse_settings
    from .cost import ASSUMED, described, estimate
    from .presets import apply_preset, preset, preset_names

    if options.name:
        settings = apply_preset(options.name, options.params, options.presets, options.root)
        print(f"{options.params} now holds {options.name}: {described(estimate(settings))}")
    else:
        for name in preset_names(options.presets):
            print(f"{name:<34}{described(estimate(parse_settings(preset(name, options.presets))))}")
    print(
        f"(estimated for {ASSUMED / 1e12:.0f} T multiply-accumulates a second; `clpdd dry-run` measures this machine)"
    )


def _dry_run(options: argparse.Namespace) -> None:
    import tempfile

    from .config import load_settings
    from .cost import described
    from .dryrun import dry_run

    settings = load_settings(options.params)
    with tempfile.TemporaryDirectory(prefix="clpdd-dry-run-") as folder:
        _, cost = dry_run(settings, Path(folder))
    print(f"expected at that speed: {described(cost)}")


def _index(options: argparse.Namespace) -> None:
    from . import stages

    stages.index(stages.open_project(options.params, options.data))


def _cache(options: argparse.Namespace) -> None:
    from . import stages

    with connect() as ranks:
        stages.cache(stages.open_project(options.params, options.data, ranks), options.encoder)


def _kernels(options: argparse.Namespace) -> None:
    from . import stages

    stages.kernels(stages.open_project(options.params, options.data), options.encoder)


def _distill(options: argparse.Namespace) -> None:
    from . import stages
    from .live import live_log

    with connect() as ranks:
        project = stages.open_project(options.params, options.data, ranks)
        watched = project.layout.root / "live" / options.encoder / options.method
        with live_log(watched) if ranks.first else contextlib.nullcontext() as log:
            stages.distill(project, options.encoder, options.method, log)


def _evaluate(options: argparse.Namespace) -> None:
    from . import stages

    stages.evaluate(stages.open_project(options.params, options.data))


def _benchmark(options: argparse.Namespace) -> None:
    from . import stages

    _compare(options, stages.benchmark)


def _ablate(options: argparse.Namespace) -> None:
    from . import stages

    _compare(options, stages.ablate)


def _compare(options: argparse.Namespace, run: Callable[[Project, str, str], Path]) -> None:
    from . import stages

    project = stages.open_project(options.params, options.data)
    encoder = options.encoder or project.settings.encoders[0]
    where = ["--params", str(options.params), "--data", str(options.data)]
    command = shlex.join(["clpdd", *where, options.command, "--encoder", encoder])  # to be given again
    logging.getLogger(__name__).info("page: %s", run(project, encoder, command).resolve())


def _draw(options: argparse.Namespace) -> None:
    from .report.comparison import write_comparison

    logging.getLogger(__name__).info("page: %s", write_comparison(options.tables, options.out).resolve())


def _report(options: argparse.Namespace) -> None:
    from . import stages

    paths = stages.report(stages.open_project(options.params, options.data))
    logging.getLogger(__name__).info("report: %s", paths["report.html"].resolve())


def _results(options: argparse.Namespace) -> None:
    from . import stages
    from .table import result_table

    project = stages.open_project(options.params, options.data)
    if not stages.page_is_current(project):  # DVC brought results back from its cache, but keeps no page
        stages.report(project)
    print(result_table(project.layout))


def _encoder(options: argparse.Namespace, settings: Settings, name: str) -> Encoder:
    from .config import EncoderOptions
    from .encoders import load_encoder, resolve_device

    given = {key: value for key in ("model", "weights", "image_size") if (value := getattr(options, key)) is not None}
    own = settings.encoder_options.get(name, EncoderOptions())
    if own.members is not None and given:
        option = "--" + next(iter(given)).replace("_", "-")
        raise SettingsError(f"{option} is for a single encoder, and {name} joins several: set it in encoder_options")
    options_of = settings.encoder_options | {name: own.model_copy(update=given)}
    known = settings.model_copy(update={"encoder_options": options_of})
    return load_encoder(**known.encoder_arguments(name), device=resolve_device(settings.runtime.device))


def _settings(options: argparse.Namespace) -> Settings:
    """The settings file, or the defaults where there is none: these commands are used far from the project, too."""
    from .config import Settings, load_settings

    default = options.params == Path("params.yaml") and not options.params.exists()
    return Settings() if default else load_settings(options.params)


def _probe(options: argparse.Namespace) -> None:
    from .classifier import train_classifier
    from .distilled import DistilledSet

    settings, data = _settings(options), DistilledSet.load(options.distilled)
    made_with = data.info.get("encoder", {})
    name = options.encoder or str(made_with.get("name"))
    joined = [member["name"] for member in made_with.get("members", ())]
    if joined and options.encoder is None and name not in settings.encoder_options:
        raise SettingsError(
            f"the set was distilled with {name}, which joins {', '.join(joined)}, and {options.params} does not define "
            f"it: run where encoder_options does, or choose one by --encoder"
        )
    encoder = _encoder(options, settings, name)
    train_classifier(data, encoder, settings.evaluate, protocol=options.protocol, seed=settings.seed).save(options.out)
    logging.getLogger(__name__).info("classifier of %d classes: %s", data.classes, options.out)


def _predict(options: argparse.Namespace) -> None:
    import csv

    from .classifier import Classifier, classify_files, find_images

    files, classifier = find_images(options.images), Classifier.load(options.classifier)
    encoder = _encoder(options, _settings(options), classifier.encoder["name"])
    writer, unread = csv.writer(sys.stdout, lineterminator="\n"), 0
    columns = [f"{what}{rank}" for rank in range(1, options.top + 1) for what in ("class", "probability")]
    writer.writerow(["path", *columns])
    for found in classify_files(classifier, encoder, files, top=options.top):
        if found.problem is not None:
            unread += 1
            logging.getLogger(__name__).warning("%s", found.problem)
        pairs = zip(found.classes, found.probabilities, strict=True)
        writer.writerow([found.path, *(value for name, share in pairs for value in (name, f"{share:.4f}"))])
    if unread:
        raise DataError(f"{unread} of {len(files)} files could not be read; the others are classified")


def _export(options: argparse.Namespace) -> None:
    from .export import export

    logging.getLogger(__name__).info("written: %s", export(options.distilled, options.to, options.out))


def _pretrain(options: argparse.Namespace) -> None:
    import dataclasses

    from .pretrain import Recipe, load_images, pretrain

    images, labels = load_images(options.images)
    pretrain(images, labels, options.out, options.architecture, dataclasses.replace(Recipe(), epochs=options.epochs))


if __name__ == "__main__":
    sys.exit(main())
