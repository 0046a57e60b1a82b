"""A project's own code runs in it, or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clpdd.cli.clone import refuse_other_code
from clpdd.errors import SettingsError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Another clone: its own package, its own ``dvc.yaml``."""
    folder = tmp_path / "it's a clone"
    shutil.copytree(ROOT / "clpdd", folder / "clpdd", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dvc.yaml").write_text("stages: {}\n")
    return folder


def command(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """``clpdd inputs`` as DVC runs it in ``folder``, with the code found by way of ``path``."""
    script = "import sys; from clpdd.cli.main import main; sys.exit(main(['inputs']))"
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_clones_code_is_refused_by_name_and_the_remedy_works(clone: Path) -> None:
    (clone / "params.yaml").write_text("{}\n")
    (clone / "clpdd" / "stages" / "inputs.py").write_text("raise SystemExit('THIS clone of the code runs')\n")
    done = command(clone, str(ROOT))
    assert done.returncode == 2
    assert f"the code in {ROOT / 'clpdd'} would run, but this project has its own in {clone / 'clpdd'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in clone.iterdir()) == ["clpdd", "dvc.yaml", "params.yaml"]
    told = done.stderr.split("export ", 1)[1].split(" (PYTHONPATH=. where")[0]
    (assigned,) = subprocess.run(
        ["sh", "-c", f'export {told}; printf %s "$PYTHONPATH"'], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for path in (assigned, "."):
        assert "THIS clone of the code runs" in command(clone, path).stderr


def test_the_projects_own_code_runs_in_it_and_below_it(clone: Path) -> None:
    (clone / "notebooks").mkdir()
    for folder in (clone, clone / "notebooks"):
        refuse_other_code(folder, clone / "clpdd")
        with pytest.raises(SettingsError, match="make install"):
            refuse_other_code(folder, ROOT / "clpdd")
    (clone.parent / "link").symlink_to(clone)
    refuse_other_code(clone.parent / "link", clone / "clpdd")


def test_a_folder_that_is_no_clone_takes_the_installed_code(tmp_path: Path) -> None:
    refuse_other_code(tmp_path, ROOT / "clpdd")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")  # a pipeline of one's own that calls clpdd
    refuse_other_code(tmp_path, ROOT / "clpdd")
    (tmp_path / "clpdd").mkdir()  # a folder of results, say
    refuse_other_code(tmp_path, ROOT / "clpdd")
