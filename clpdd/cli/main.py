"""The ``clpdd`` command: one subcommand a stage; it reads the line, runs ``clpdd.cli.commands``, tells errors."""

from __future__ import annotations

import argparse
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from .. import __version__
from ..distributed.launch import launched
from ..errors import ClpddError, Preempted, ResourceError, SettingsError
from ..runtime.machine import is_memory_error
from ..runtime.preemption import on_signal
from ..runtime.retries import tell_retries_once
from ..storage.files import explain_os_error
from ..storage.layout import SPLITS
from . import commands, init, whole
from .arguments import DATA, PARAMS, settle, whole_number
from .clone import refuse_other_code
from .presets import PRESETS

__all__ = ["build_parser", "main"]

_OVER_RANKS = ("cache", "distill")  # commands that several processes may run together


def build_parser() -> argparse.ArgumentParser:
    """Every command and its arguments."""
    parser = argparse.ArgumentParser(
        prog="clpdd", description="Dataset distillation for linear probes over frozen encoders."
    )
    parser.add_argument("--version", action="version", version=f"clpdd {__version__}", help="print the version")
    text = "settings file (default: params.yaml, else what `clpdd run PHOTOS` left in the folder of the artifacts)"
    parser.add_argument("--params", type=Path, default=PARAMS, help=text)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the artifacts (default: data)")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        for option in ("--params", "--data"):  # stand before the command; meant likewise after it
            if (name, option) != ("run", "--params"):
                command.add_argument(option, type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return command

    _whole(add)
    _prepare(add)
    text = "note images, local weights and versions, which DVC does not see, and name what has changed"
    inputs = add("inputs", commands.inputs, text)
    text = "note the package's code that decides each stage too: for projects whose dvc.yaml lists no sources"
    inputs.add_argument("--code", action="store_true", help=text)
    add("index", commands.index, "labelled images to a Parquet index of each split")
    add("cache", commands.cache, "every split through a frozen encoder into Zarr").add_argument(
        "--encoder", required=True, help="name in encoders"
    )
    add("kernels", commands.kernels, "moments, spectrum and full-data probe of one encoder").add_argument(
        "--encoder", required=True, help="name in encoders"
    )
    distill = add("distill", commands.distill, "make a distilled dataset with one method and one encoder")
    distill.add_argument("--encoder", required=True, help="name in encoders")
    distill.add_argument("--method", required=True, help="name in methods")
    add("evaluate", commands.evaluate, "train probes on every distilled dataset and score them on the test split")
    for name, run, text in (
        ("benchmark", commands.benchmark, "compare methods by the clock, on test images (settings: benchmark)"),
        ("ablate", commands.ablate, "vary CLP-DD's choices one at a time, on validation features"),
    ):
        add(name, run, text).add_argument("--encoder", help="default: the first of encoders")
    draw = add("draw", commands.draw, "draw tables of benchmark and ablate as one page")
    draw.add_argument("tables", type=Path, nargs="+", help="Parquet files, of whatever datasets and encoders")
    draw.add_argument("--out", type=Path, required=True, help="HTML file to write")
    add("report", commands.report, "write the result page")
    text = "print the result table: mean and spread of every method, its share of all data, the highest first"
    forms = add("results", commands.results, text).add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print it as a JSON array")
    forms.add_argument("--csv", action="store_true", help="print it as CSV")
    score = add("score", commands.score, "judge any set of images as distilled sets are: same probes, same test images")
    score.add_argument("images", type=Path, help="distilled set, folder of class folders, or Parquet file of images")
    score.add_argument("--encoder", nargs="+", help="names in encoders (default: all of them)")
    score.add_argument("--worth", action="store_true", help="tell also how many real images the set is worth")
    text = (
        "judge as many random training images of every class, too, and tell the difference: takes several times as long"
    )
    score.add_argument("--random", action="store_true", help=text)
    score.add_argument("--json", action="store_true", help="print it as a JSON array")
    _hand_over(add)
    pretrain = add("pretrain", commands.pretrain, "train a small encoder from scratch, as the shipped one was")
    pretrain.add_argument("--images", required=True, nargs="+", help="Parquet files in Hugging Face layout")
    pretrain.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    pretrain.add_argument("--architecture", default="clpdd_resnet14", help="timm model name")
    pretrain.add_argument("--epochs", type=whole_number(1), default=30, help="passes over the images (default: 30)")
    return parser


def _encoder_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", help="timm model of the encoder (default: encoder_options, or its name)")
    command.add_argument("--weights", type=Path, help="safetensors file of its weights (default: as above)")
    command.add_argument("--image-size", type=int, help="input side in pixels (default: as above)")


def _whole(add: Callable[..., argparse.ArgumentParser]) -> None:
    text = "run every stage, from photos to the result table and the report; a killed run is continued"
    run = add("run", whole.run, text)
    text = "folder of class folders, or Parquet file or folder; without it, the dataset of the settings file"
    run.add_argument("photos", type=Path, nargs="?", help=text)
    text = "timm name, or a name in encoder_options (default: that of the settings file, else the small one shipped)"
    run.add_argument("--encoder", help=text)
    _encoder_options(run)
    run.add_argument("--out", type=Path, help="folder of the artifacts (default: that of --data)")
    text = "settings file; with photos it must be named here to be used, or the defaults for photographs are"
    run.add_argument("--params", type=Path, default=argparse.SUPPRESS, help=text)


def _prepare(add: Callable[..., argparse.ArgumentParser]) -> None:
    project = add("init", init.init, "write a project of one's own: settings, DVC pipeline, Prefect deployments")
    project.add_argument("folder", type=Path, help="folder of the project; nothing in it is overwritten")
    text = "folder of class folders, or Parquet file or folder (default: that of the preset)"
    project.add_argument("--images", type=Path, help=text)
    project.add_argument("--encoder", help="timm name or short name (default: that of the preset)")
    _encoder_options(project)
    project.add_argument("--preset", help="DATASET-ENCODER, as `clpdd preset` lists them (default: the digits)")
    project.add_argument("--no-git", action="store_true", help="make no git repository")
    project.add_argument("--no-dvc", action="store_true", help="do not initialise DVC")
    text = "write a preset into the settings file, or list them with their expected cost"
    preset = add("preset", commands.preset, text)
    preset.add_argument("name", nargs="?", help="DATASET-ENCODER; without it, presets are listed")
    preset.add_argument(
        "--presets", type=Path, default=PRESETS, help="folder of presets (default: those that come along)"
    )
    preset.add_argument(
        "--published", action="store_true", help="the encoder as LGM's published code takes it, to compare with papers"
    )
    preset.add_argument("--root", help="folder the dataset's files lie in (default: the preset's)")
    text = "walk the settings through every stage with random weights: shapes, one step, speed, expected cost"
    add("dry-run", commands.dry_run, text)


def _hand_over(add: Callable[..., argparse.ArgumentParser]) -> None:
    probe = add("probe", commands.probe, "train a ready classifier from a distilled dataset alone")
    probe.add_argument("distilled", type=Path, help="folder of a distilled dataset")
    probe.add_argument("--encoder", help="default: the one it was distilled with")
    text = "how it is trained: best (default) takes the one that does best on the features of validation images, or "
    text += "closed_form where there are none; closed_form is ridge regression on augmented views of the images, "
    text += "closed_form_clean on the images as they are, sgd the protocol of the field"
    probe.add_argument(
        "--protocol", choices=["best", "closed_form", "closed_form_clean", "sgd"], default="best", help=text
    )
    probe.add_argument("--out", type=Path, required=True, help=".safetensors file to write")
    predict = add("predict", commands.predict, "classify image files with a classifier made by probe")
    predict.add_argument("classifier", type=Path, help=".safetensors file made by probe")
    predict.add_argument("images", type=Path, nargs="+", help="image files and folders of them")
    predict.add_argument("--top", type=whole_number(1), default=1, help="likeliest classes shown of each (default: 1)")
    onnx = add("onnx", commands.onnx, "write a classifier made by probe as ONNX, and check it by onnxruntime")
    onnx.add_argument("classifier", type=Path, help=".safetensors file made by probe")
    text = "images to probabilities; without it, features to probabilities"
    onnx.add_argument("--with-encoder", action="store_true", help=text)
    onnx.add_argument("--out", type=Path, required=True, help=".onnx file to write")
    for command in (probe, predict, onnx):
        _encoder_options(command)
    export = add("export", commands.export, "write a distilled dataset in the form of another tool")
    export.add_argument("distilled", type=Path, help="folder of a distilled dataset")
    export.add_argument(
        "--to", choices=["huggingface", "folder", "webdataset", "safetensors"], required=True, help="form to write"
    )
    export.add_argument("--out", type=Path, required=True, help="what to write; must not exist yet")
    text = "number of the independent draw, of a set that has several (default: 0)"
    export.add_argument("--draw", type=whole_number(0), default=0, help=text)
    text = "write the cached features as one Parquet file, with file names, labels and splits"
    features = add("features", commands.features, text)
    features.add_argument("--encoder", help="name in encoders (default: the first)")
    features.add_argument("--split", choices=SPLITS, nargs="+", help="default: all of them")
    features.add_argument("--out", type=Path, required=True, help=".parquet file to write; must not exist yet")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code (see ``clpdd.errors``; 130 after Ctrl-C)."""
    options = settle(build_parser().parse_args(arguments))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("clpdd").setLevel(logging.INFO)
    tell_retries_once()
    if isinstance(sys.stdout, io.TextIOWrapper):  # where the locale lacks a character of a table, the table still shows
        sys.stdout.reconfigure(errors="backslashreplace")
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        refuse_other_code(Path.cwd())
        if launched().size > 1:
            if options.command not in _OVER_RANKS:
                raise SettingsError("runs in one process: start it without torchrun, and with WORLD_SIZE unset")
            on_signal(_stop)
        commands.refuse_settings(options)
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
