"""The reference of the command line, from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .markup import code, prose, table

__all__ = ["EXAMPLES", "commands", "commands_reference"]

EXAMPLES = {
    "run": "clpdd run photos/ --out shapes",
    "init": "clpdd init mine --images photos/ --encoder resnet18.a1_in1k",
    "inputs": "clpdd inputs",
    "index": "clpdd index",
    "cache": "clpdd cache --encoder clpdd_resnet14",
    "kernels": "clpdd kernels --encoder clpdd_resnet14",
    "distill": "clpdd distill --encoder clpdd_resnet14 --method clp",
    "evaluate": "clpdd evaluate",
    "report": "clpdd report",
    "results": "clpdd results --csv > results.csv",
    "score": "clpdd score other-set/ --encoder clpdd_resnet14 --worth --json > scores.json",
    "preset": "clpdd preset imagenet1k-dinov2 --root ~/imagenet",
    "dry-run": "clpdd --params other.yaml dry-run",
    "benchmark": "clpdd benchmark --encoder clpdd_resnet14",
    "ablate": "clpdd ablate --encoder clpdd_resnet14",
    "draw": "clpdd draw data/benchmark/*/benchmark.parquet --out comparison.html",
    "probe": "clpdd probe data/distilled/clpdd_resnet14/clp --out digits.safetensors",
    "predict": "clpdd predict digits.safetensors photos/ --top 3 > predictions.csv",
    "export": "clpdd export data/distilled/clpdd_resnet14/clp --to webdataset --out digits.tar",
    "onnx": "clpdd onnx digits.safetensors --with-encoder --out digits.onnx",
    "features": "clpdd features --split train test --out features.parquet",
    "pretrain": "clpdd pretrain --images tiny-imagenet-100-train.parquet --out encoder.safetensors --epochs 30",
}
"""A line for each command, as somebody would type it."""


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of every subcommand, in the order in which they were added."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def commands_reference(parser: argparse.ArgumentParser) -> str:
    """The reference as Markdown: the options of all commands, then each command with its usage and its arguments."""
    parts = [_arguments(parser), ""]
    for name, command in commands(parser):
        parts += [
            f"## `{parser.prog} {name}` {{#{name}}}",
            "",
            f"{_sentence(command.description or '')}",
            "",
            "```text",
            _usage(command),
            "```",
            "",
            *(["```console", f"$ {EXAMPLES[name]}", "```", ""] if name in EXAMPLES else []),
            _arguments(command),
        ]
    return "\n".join(parts)


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=88)  # not the terminal's, or pages would differ
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def _arguments(parser: argparse.ArgumentParser) -> str:
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        shown = ", ".join(action.option_strings) or str(action.metavar or action.dest).upper()
        if action.choices is not None:
            shown += " " + "|".join(map(str, action.choices))
        needed = action.required if action.option_strings else action.nargs not in ("?", "*")
        rows.append([code(shown), "yes" if needed else "no", prose(_help(action))])
    return table(["argument", "needed", "meaning"], rows) if rows else ""


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
