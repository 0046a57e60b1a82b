"""The reference of the command line, from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .markup import code, prose, table

__all__ = ["commands", "commands_reference"]


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
