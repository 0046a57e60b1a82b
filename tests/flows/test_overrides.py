"""Settings overrides: refused before a byte is written, written whole, and as DVC itself would."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from clpdd.errors import SettingsError
from clpdd.flows.environment import ROOT
from clpdd.flows.overrides import apply_overrides, parse_override


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=3", ["seed"], 3),
        ("distill.temperature=0.5", ["distill", "temperature"], 0.5),
        ("params.yaml:evaluate.epochs=10", ["evaluate", "epochs"], 10),
        ("encoders=[a, b]", ["encoders"], ["a", "b"]),
        ("dataset.train=images/*.parquet", ["dataset", "train"], "images/*.parquet"),
        ("dataset.train=", ["dataset", "train"], None),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, path: list[str], value: object) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("distill.stps=1", "did you mean steps"),
        ("distill.steps=0", "distill.steps"),
        ("distill.steps=many", "distill.steps"),
        ("distill.steps", "section.key=value"),
        ("=1", "section.key=value"),
        ("distill..steps=1", "section.key=value"),
        ("seed.more=1", "seed holds a value, not a section"),
        ("other.yaml:seed=1", "only params.yaml holds settings"),
        ("seed=[", "not YAML"),
        ("methods=[clp, nonsense]", "methods"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(project: Path, override: str, told: str) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(SettingsError, match=told.replace(".", r"\.")):
        apply_overrides(project, ["seed=5", override])
    assert (project / "params.yaml").read_bytes() == before


def test_only_the_named_lines_change_and_comments_stay(project: Path) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    assert apply_overrides(project, ["distill.steps=7", "evaluate.protocols=[closed_form]", "distill.image_size=32"])
    after = (project / "params.yaml").read_text().splitlines()
    assert len(after) == len(before)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 3
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in changed)


def test_overrides_that_change_nothing_leave_the_file_alone(project: Path) -> None:
    before = (project / "params.yaml").stat().st_mtime_ns
    assert not apply_overrides(project, ["seed=0"])
    assert not apply_overrides(project, [])
    assert (project / "params.yaml").stat().st_mtime_ns == before


def test_params_yaml_itself_is_checked(project: Path) -> None:
    (project / "params.yaml").write_text("sead: 0\n")
    with pytest.raises(SettingsError, match="did you mean seed"):
        apply_overrides(project, [])


def test_the_values_are_those_that_dvc_writes(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    hydra = pytest.importorskip("dvc.utils.hydra")
    pytest.importorskip("hydra")
    other = tmp_path_factory.mktemp("dvc") / "params.yaml"
    shutil.copy(project / "params.yaml", other)
    overrides = ["distill.steps=7", "distill.augment.noise=0.25", "encoders=[a,b]", "dataset.max_per_class.train=5"]
    hydra.apply_overrides(other, overrides)
    apply_overrides(project, overrides)
    assert yaml.safe_load((project / "params.yaml").read_text()) == yaml.safe_load(other.read_text())


def test_sigkill_at_any_moment_leaves_a_whole_file(project: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from clpdd.flows.overrides import apply_overrides\n"
        "for n in range(10**6): apply_overrides(Path(sys.argv[1]), [f'seed={n % 1000 + 1}'])"
    )
    for pause in (0.0, 0.01, 0.03):
        before = (project / "params.yaml").read_bytes()
        writer = subprocess.Popen([sys.executable, "-c", script, str(project)], cwd=ROOT)
        while (project / "params.yaml").read_bytes() == before:
            time.sleep(0.005)
        time.sleep(pause)
        writer.kill()
        writer.wait()
        assert not apply_overrides(project, [])  # it is read and in order
