"""Commands that compute nothing, and refusals of settings, start without torch and within little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.storage.layout import SPLITS, Layout

from .artifacts import write_artifacts

ROOT = Path(__file__).parents[2]
MEGABYTES = 250  # of the whole process, at most

SCRIPT = """
import pathlib, sys
from clpdd.cli.main import main
code = main(sys.argv[1:])
slow = sorted({"torch", "timm", "torchvision", "sklearn", "scipy"} & {*sys.modules})
status = pathlib.Path("/proc/self/status")  # on Linux; getrusage counts the parent's memory before exec in
peak = int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024 if status.exists() else 0
print("imported", *slow, "within", int(peak), "code", code, file=sys.stderr)
"""


def started(*arguments: str | Path) -> tuple[str, int]:
    """What a command said on the way, and its exit code; it has imported nothing slow and taken little memory."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *said, last = done.stderr.strip().splitlines()
    words = last.split()
    assert words[:2] == ["imported", "within"], last
    assert int(words[2]) <= MEGABYTES
    return done.stdout + "\n".join(said), int(words[4])


def settings_file(folder: Path, **values: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_results_and_the_report_are_made(plain: tuple[Layout, Settings], tmp_path: Path) -> None:
    place = "--params", settings_file(tmp_path), "--data", plain[0].root
    said, code = started(*place, "report")
    assert code == 0
    assert "report.html" in said
    said, code = started(*place, "results")
    assert code == 0
    assert "closed_form" in said


def test_a_set_too_large_to_be_encoded_for_a_page_loads_no_encoder(tmp_path: Path) -> None:
    settings = parse_settings({"methods": ["clp"], "distill": {"images_per_class": 7}})
    layout = write_artifacts(tmp_path / "data", settings, [f"class {c}" for c in range(300)], side=8, clocks=False)
    for split in SPLITS:
        layout.features("clpdd_resnet14", split).mkdir(parents=True)  # there, as after a run
    file = settings_file(tmp_path, **settings.model_dump(mode="json", include={"methods", "distill"}))
    said, code = started("--params", file, "--data", layout.root, "report")
    assert code == 0
    assert "no picture of feature space: clp has more than 2000 images" in said


def test_presets_are_listed() -> None:
    said, code = started("preset")
    assert code == 0
    assert "imagenet1k-dinov2" in said


@pytest.mark.parametrize(
    ("values", "command", "told"),
    [
        ({"distill": {"stepz": 3}}, ("distill", "--encoder", "clpdd_resnet14", "--method", "clp"), "stepz"),
        ({"evaluate": {"epochs": -1}}, ("evaluate",), "evaluate.epochs"),
        ({}, ("cache", "--encoder", "other"), "not listed in encoders"),
        ({}, ("distill", "--encoder", "clpdd_resnet14", "--method", "other"), "unknown method 'other'"),
        ({"encoders": ["mocov3"]}, ("kernels", "--encoder", "mocov3"), "encoder_options.mocov3.weights is needed"),
        ({"seed": "x"}, ("score", "none"), "seed"),
        ({}, ("score", "none", "--encoder", "clpdd_resnet14", "other"), "encoder 'other' is not listed in encoders"),
        ({"encoders": ["mocov3"]}, ("score", "none", "--encoder", "mocov3"), "encoder_options.mocov3.weights is"),
        ({"seed": "x"}, ("features", "--out", "none.parquet"), "seed"),
        ({}, ("features", "--encoder", "other", "--out", "none.parquet"), "not listed in encoders"),
        ({"seed": "x"}, ("run",), "seed"),
        ({"seed": "x"}, ("predict", "none.safetensors", "none.png"), "seed"),
    ],
)
def test_settings_are_refused(values: dict[str, object], command: tuple[str, ...], told: str, tmp_path: Path) -> None:
    said, code = started("--params", settings_file(tmp_path, **values), "--data", tmp_path / "data", *command)
    assert code == 2
    assert told in said
