"""The command line: what it accepts, and where."""

from __future__ import annotations

import pytest

from clpdd.cli.main import build_parser

COMMANDS = [
    ["results", "--json"],
    ["cache", "--encoder", "one"],
    ["features", "--out", "f.parquet"],
    ["run", "photos"],
    ["dry-run"],
    ["report"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_settings_and_artifacts_are_named_before_a_command_or_after_it(command: list[str]) -> None:
    named = ["--params", "p.yaml", "--data", "d"]
    parser = build_parser()
    before, after = parser.parse_args([*named, *command]), parser.parse_args([*command, *named])
    assert vars(before) == vars(after)
    assert str(before.params) == "p.yaml"
    assert str(parser.parse_args(command).params) == "params.yaml"
