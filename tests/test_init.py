"""``clpdd init``: a project of one's own, which DVC and Prefect run with an installed package."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import clpdd
from clpdd.catalogue.protocols import PROTOCOLS
from clpdd.cli import init
from clpdd.cli.main import main
from clpdd.config.loading import load_settings, parse_settings
from clpdd.config.settings import Settings
from clpdd.config.variants import BUILT_IN
from clpdd.encoders.encoder import Encoder
from clpdd.evaluation.running import module_of as protocol_module
from clpdd.methods.loading import modules_of
from clpdd.stages import code
from clpdd.stages.code import DECIDING, code_notes
from clpdd.stages.order import STAGES
from clpdd.storage.digests import RememberedDigests
from clpdd.storage.files import sha256_file
from clpdd.storage.provenance import code_files

from .clones import BIN, change_settings, stages_made, stages_run
from .photos import draw_photos

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "clpdd" / "cli" / "template"
PLAIN = ["--no-git", "--no-dvc"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos, to make a project in."""
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    return tmp_path


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# -- what is written ---------------------------------------------------------------------------------------------------


def stages(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["stages"]
    return found


def test_its_pipeline_is_the_clones_with_notes_of_the_code_in_place_of_the_code() -> None:
    ours, own = stages(ROOT / "dvc.yaml"), stages(TEMPLATE / "pipeline.yaml")
    ours.pop("benchmark")  # part of no default run
    assert own["inputs"].pop("cmd") == ours["inputs"].pop("cmd") + " --code"
    for name, stage in ours.items():
        kept = [dep for dep in stage["deps"] if not dep.startswith("clpdd/")]
        if name == "distill":
            stage["params"] = ["seed", "encoder_options", "precision"]
        if name == "inputs":
            stage.pop("deps")
        else:
            note = "distill/${item.method}" if name == "distill" else name
            stage["deps"] = [f"data/inputs/code/{note}.json", *kept]
    assert own == ours
    assert list(own) == list(STAGES)
    plots = (yaml.safe_load(path.read_text())["plots"] for path in (ROOT / "dvc.yaml", TEMPLATE / "pipeline.yaml"))
    assert next(plots) == next(plots)


def test_its_deployments_are_the_clones_and_wait_to_be_switched_on() -> None:
    ours, own = (yaml.safe_load((folder / "prefect.yaml").read_text()) for folder in (ROOT, TEMPLATE))
    for deployment in own["deployments"]:
        for schedule in deployment.get("schedules", []):
            assert schedule.pop("active") is False
    for deployment in ours["deployments"]:
        for schedule in deployment.get("schedules", []):
            schedule.pop("active")
    assert own == ours


def test_the_notes_hold_the_settings_that_dvc_watches() -> None:
    watched = {
        name: tuple(stage["params"]) for name, stage in stages(TEMPLATE / "pipeline.yaml").items() if "params" in stage
    }
    assert watched == DECIDING
    written = yaml.safe_load((TEMPLATE / "params.yaml").read_text())
    assert {key for keys in DECIDING.values() for key in keys} <= set(written)  # DVC refuses one that is not there


def test_its_settings_differ_from_the_defaults_only_where_photos_need_it() -> None:
    written = yaml.safe_load((TEMPLATE / "params.yaml").read_text())
    written["dataset"] |= {"train": "photos"}
    plain = Settings().model_dump(mode="json")
    plain["dataset"] |= {"name": "folder", "train": "photos", "bad_images": "skip", "duplicates": "drop"}
    plain["dataset"] |= {"empty_classes": "drop"}
    assert parse_settings(written).model_dump(mode="json") == plain


def test_images_a_preset_and_an_encoder_go_into_its_settings(here: Path) -> None:
    assert main(["init", "a", "--images", "photos", "--encoder", "resnet10t", *PLAIN]) == 0
    found = load_settings("a/params.yaml", place=False)
    assert (found.dataset.name, found.dataset.train, found.dataset.title) == ("folder", "../photos", "photos")
    assert (found.encoders, found.distill.augment.flip) == (["resnet10t"], 0.5)
    assert main(["init", "b", *PLAIN]) == 0
    digits = load_settings("b/params.yaml")
    assert (digits.dataset.name, digits.distill.augment.flip) == ("digits", 0.0)
    assert main(["init", "c", "--preset", "waterbirds-clip", *PLAIN]) == 0
    birds = load_settings("c/params.yaml")
    assert (birds.dataset.name, birds.encoders) == ("waterbirds", ["clip"])
    assert main(["init", ".", "--images", "photos", "--preset", "cub200-dinov2", *PLAIN]) == 0  # beside the images
    mixed = load_settings("params.yaml")
    assert (mixed.dataset.name, mixed.dataset.train, mixed.encoders) == ("folder", "photos", ["dinov2"])
    assert "/photos" in Path(".gitignore").read_text().split()
    assert "# >= 1" in Path("params.yaml").read_text()
    (here / "w.safetensors").touch()
    own = ["--encoder", "resnet10t", "--weights", "w.safetensors", "--image-size", "64"]
    assert main(["init", "own", "--images", "photos", *own, *PLAIN]) == 0
    options = load_settings("own/params.yaml", place=False).encoder_options["resnet10t"]
    assert (options.weights, options.image_size) == ("../w.safetensors", 64)


def test_nothing_is_overwritten_and_what_is_wrong_leaves_nothing(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "dvc.yaml").write_text("stages: {}\n")
    before = tree(here)
    for arguments, told in (
        (["mine"], "mine has dvc.yaml already"),
        (["new", "--images", "fotos"], "fotos does not exist"),
        (["new", "--encoder", "resnet1O"], "near names: resnet1"),
        (["new", "--preset", "digits-klip"], "no preset 'digits-klip'"),
        (["photos/red/0.png"], "is a file"),
    ):
        assert main(["init", *arguments]) in (2, 3, 4)
        assert told in capfd.readouterr().err
        assert tree(here) == before
    (here / "home").mkdir()
    monkeypatch.setattr(init, "_run", lambda folder, *command: (_ for _ in ()).throw(OSError(28, "full")))
    for folder in ("new/er", "home"):
        assert main(["init", folder, *(["--no-git"] if folder == "home" else [])]) != 0
        assert tree(here) == before
        assert not (here / "new").exists()
        assert not list((here / "home").iterdir())


@pytest.mark.parametrize("kept", ["--no-dvc", "--no-git"])
def test_what_git_or_dvc_have_is_neither_replaced_nor_removed(
    here: Path, capfd: pytest.CaptureFixture[str], kept: str
) -> None:
    mine = here / "mine"
    mine.mkdir()
    if kept == "--no-dvc":  # a repository that git refuses to use
        subprocess.run(["git", "init", "--quiet"], cwd=mine, check=True)
        subprocess.run(["git", "config", "core.repositoryformatversion", "99"], cwd=mine, check=True)
    else:
        (mine / ".dvc" / "cache").mkdir(parents=True)
        (mine / ".dvc" / "cache" / "ab").write_text("the only copy")
    before = tree(here)
    assert main(["init", "mine", kept]) == 3
    told = capfd.readouterr().err
    assert "git repo version" in told if kept == "--no-dvc" else ".dvc is there without its file config" in told
    assert tree(here) == before
    assert main(["init", "mine", *PLAIN]) == 0
    assert tree(here) > before


def test_an_existing_repository_survives_a_failure(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "mine").mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=here / "mine", check=True)
    before = tree(here)
    monkeypatch.setattr(init, "_run", lambda folder, *command: (_ for _ in ()).throw(OSError(28, "full")))
    assert main(["init", "mine"]) != 0
    assert tree(here) == before


@pytest.mark.parametrize("folder", ["photos", "photos/project"])
def test_a_project_among_its_own_classes_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    before = tree(here)
    assert main(["init", folder, "--images", "photos", *PLAIN]) == 3
    assert f"{folder} lies in photos, where it would be taken for a class" in capsys.readouterr().err
    assert tree(here) == before


def test_images_inside_are_ignored_by_git_whatever_their_folder_is_called(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "photos").rename(here / "mine" / "my [best] photos*")
    assert main(["init", "mine", "--images", "mine/my [best] photos*", "--no-dvc"]) == 0
    ignored = subprocess.run(["git", "check-ignore", "my [best] photos*"], cwd=here / "mine", check=False)
    assert ignored.returncode == 0
    other = subprocess.run(["git", "check-ignore", "my b photos"], cwd=here / "mine", check=False)
    assert other.returncode == 1


def test_one_that_was_killed_is_finished_by_the_same_command(here: Path) -> None:
    assert main(["init", "a", *PLAIN]) == 0
    whole = tree(here / "a")
    (here / "a" / "dvc.yaml").unlink()
    assert main(["init", "a", *PLAIN]) == 0
    assert tree(here / "a") == whole


# -- notes of the code -------------------------------------------------------------------------------------------------


def notes(**values: Any) -> dict[str, dict[str, Any]]:
    return code_notes(parse_settings(values), RememberedDigests(Path("none.json")))


def test_notes_cover_every_digest_of_the_stages(encoder: Encoder) -> None:
    settings = parse_settings({"methods": ["clp", "neighbor"], "distill": {"neighbor_of": "lgm"}})
    found = {name: set(note["files"]) for name, note in notes(**settings.model_dump(exclude_unset=True)).items()}
    assert set(found) == {"index", "cache", "kernels", "distill/clp", "distill/neighbor", "evaluate", "report"}
    assert found["cache"] >= set(code_files("clpdd.stages.cache", *encoder.code))
    for name in ("clp", "neighbor"):
        modules = modules_of(name, settings.distill)
        assert found[f"distill/{name}"] >= set(code_files("clpdd.stages.distill", *modules, *encoder.code))
    for protocol in PROTOCOLS:
        assert found["evaluate"] >= set(code_files("clpdd.stages.evaluate", protocol_module(protocol), *encoder.code))
    weights = "weights/clpdd_resnet14.tin100.safetensors"
    assert {name for name, files in found.items() if weights in files} == {
        "cache",
        "distill/clp",
        "distill/neighbor",
        "evaluate",
    }
    joined = notes(encoders=["both"], encoder_options={"both": {"members": {"resnet10t": 1.0, "resnet18": 1.0}}})
    assert "encoders/joint.py" in joined["cache"]["files"]
    assert weights not in joined["cache"]["files"]


def test_a_change_of_the_package_changes_the_notes_of_the_stages_that_run_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "clpdd"
    shutil.copytree(Path(clpdd.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", package)
    before = notes(methods=["clp", "lgm"])
    for changed, concerned in (
        ("cli/main.py", set()),
        ("runtime/progress.py", set()),
        ("methods/lgm.py", {"distill/lgm"}),
        ("encoders/loading.py", {"cache", "distill/clp", "distill/lgm", "evaluate", "report"}),
        ("report/page.py", {"report"}),
        ("datasets/split.py", {"index"}),
        ("stages/kernels.py", {"kernels"}),
        ("weights/clpdd_resnet14.tin100.safetensors", {"cache", "distill/clp", "distill/lgm", "evaluate"}),
    ):
        with (package / changed).open("ab") as file:
            file.write(b"\n# changed\n")
        after = notes(methods=["clp", "lgm"])
        assert {name for name in after if after[name] != before[name]} == concerned, changed
        before = after


def test_other_settings_of_a_variant_that_the_package_brings_change_its_note(monkeypatch: pytest.MonkeyPatch) -> None:
    before = notes(methods=["clp", "lgm"])
    monkeypatch.setitem(BUILT_IN, "lgm", BUILT_IN["lgm"] | {"steps": 100})
    after = notes(methods=["clp", "lgm"])
    assert {name for name in after if after[name] != before[name]} == {"distill/lgm"}
    other = notes(methods=["clp", "lgm", "centroid"], distill={"temperature": 0.2})
    plain = notes(methods=["clp", "lgm", "centroid"])
    assert {name for name in other if other[name] != plain[name]} == {"distill/clp", "report"}  # the report tells it


# -- a real DVC --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dvc_runs_a_new_project_once_and_after_an_upgrade_only_what_it_concerns(here: Path) -> None:
    package = here / "installed" / "clpdd"
    shutil.copytree(Path(clpdd.__file__).parent, package)  # with what is compiled
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(package.parent)}

    def repro() -> str:
        command = ["dvc", "repro", "kernels"]  # the stages after it are the clone's, as a test above says
        done = subprocess.run(command, cwd=here / "mine", env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert main(["init", "mine", "--images", "photos"]) == 0
    change_settings(here / "mine", {"runtime.workers": 0})
    assert stages_made(repro()) == ["index", "cache@clpdd_resnet14", "kernels@clpdd_resnet14"]
    lock = sha256_file(here / "mine" / "dvc.lock")
    assert stages_run(repro()) == ["inputs"]
    assert sha256_file(here / "mine" / "dvc.lock") == lock
    with (package / "stages" / "kernels.py").open("a") as file:
        file.write("\n# changed\n")
    output = repro()
    assert stages_made(output) == ["kernels@clpdd_resnet14"]
    assert "code of kernels changed: stages/kernels.py" in output
