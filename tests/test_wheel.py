"""The wheel: everything that its two packages read of themselves is in it, and nothing of the clone around them."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

import clpdd

from .clones import copy_project


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """The names in a wheel of the project, and those of the project's files."""
    clone, out = copy_project(tmp_path_factory.mktemp("clone"), {}), tmp_path_factory.mktemp("wheel")
    files = {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(out), "."], cwd=clone, check=True)
    (wheel,) = out.glob("clpdd-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist()), files


def test_every_file_of_the_packages_is_in_the_wheel(listed: tuple[set[str], set[str]]) -> None:
    wheel, files = listed
    own = {name for name in files if name.startswith(("clpdd/", "flows/"))}
    assert own <= wheel
    for kind in ("presets/datasets/", "presets/encoders/", "cli/template/", "weights/", "report/templates/"):
        assert any(name.startswith(f"clpdd/{kind}") for name in own), kind
    assert "flows/pipeline.py" in own


def test_nothing_but_the_packages_is_in_the_wheel(listed: tuple[set[str], set[str]]) -> None:
    wheel, _ = listed
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"clpdd", "flows"}
    (points,) = [name for name in wheel if name.endswith("entry_points.txt")]
    assert points.startswith("clpdd-")


def test_the_package_runs_as_a_module_as_its_script_does() -> None:
    ran = subprocess.run([sys.executable, "-m", "clpdd", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"clpdd {clpdd.__version__}\n"
