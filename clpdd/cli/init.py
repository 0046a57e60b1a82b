"""The command ``init``: a project of one's own, on the installed package. It imports what it needs when it runs.

The files come from ``template/``; ``params.yaml`` is edited for the images, the preset and the encoder that are named.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..config.editing import edited
from ..config.loading import parse_settings
from ..config.placing import placed
from ..config.reading import read_yaml
from ..config.settings import Settings
from ..errors import DataError, ResourceError, SettingsError
from ..storage.files import explain_os_errors, remove, write_bytes
from .arguments import options_of_encoder
from .photos import settings_for
from .presets import preset

__all__ = ["init", "project_files"]

TEMPLATE = Path(__file__).parent / "template"
_FILES = {
    ".gitignore": "gitignore",
    ".dvcignore": "dvcignore",
    "data/.gitignore": "data-gitignore",
    "README.md": "README.md",
    "prefect.yaml": "prefect.yaml",
    "params.yaml": "params.yaml",
    "dvc.yaml": "pipeline.yaml",  # a dvc.yaml among the templates would be part of this clone's own pipeline
}
"""File of the project -> file in ``template/``, in the order of writing."""

_WHOLE = ("encoder_options",)
_DEFAULT = "digits-resnet14"


def init(options: argparse.Namespace) -> None:
    folder: Path = options.folder
    git, dvc = not options.no_git, not options.no_dvc
    files = project_files(folder, options.images, options.encoder, options.preset, options_of_encoder(options))
    _refuse(folder, files, git, dvc)
    with _undone_on_failure(folder) as written:
        for name, text in files.items():
            if not (folder / name).exists():
                written.append(folder / name)
                write_bytes(folder / name, text.encode())
        _version(folder, written, git, dvc)
    inside = f"cd {folder} && " if folder.resolve() != Path.cwd().resolve() else ""
    print(f"{folder} is ready: {inside}{'dvc repro' if dvc else 'clpdd run'}  (settings: params.yaml; more: README.md)")


def project_files(
    folder: Path, images: Path | None, encoder: str | None, name: str | None, given: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Every file of a new project and its text, in the order of writing. Nothing is written.

    Args:
        folder: where the project will lie; paths in ``params.yaml`` are relative to it.
        images: folder of class folders, or Parquet; ``None`` takes the preset's data set.
        encoder: timm name or short name; ``None`` takes the preset's, else the one that is shipped.
        name: preset, ``DATASET-ENCODER``; ``None`` without ``images`` takes the digits.
        given: options of the encoder, as in ``encoder_options``; paths relative to the working folder.

    Raises:
        DataError: ``images`` are none.
        SettingsError: an unknown preset or encoder, or an encoder that lacks weights.
    """
    from ..stages.project import open_project

    texts = {target: (TEMPLATE / source).read_text(encoding="utf-8") for target, source in _FILES.items()}
    texts["params.yaml"] = _params(texts["params.yaml"], folder, images, encoder, name, given)
    if images is not None and folder.resolve().is_relative_to(images.resolve()):
        raise DataError(
            f"{folder} lies in {images}, where it would be taken for a class: name a folder beside the images"
        )
    settings = parse_settings(read_yaml(texts["params.yaml"]), source="the new params.yaml")
    open_project(placed(settings, folder)).check_encoders()
    trial = "commit first: git add . && git commit -m start"
    title = folder.resolve().name or "project"
    texts["README.md"] = texts["README.md"].replace("{title}", title).replace("{commit}", trial)
    if images is not None and images.resolve().is_relative_to(folder.resolve()):  # images are not for git
        own = images.resolve().relative_to(folder.resolve()).as_posix()
        texts[".gitignore"] += "/" + re.sub(r"([\\*?\[\] ])", r"\\\1", own) + "\n"  # a name, not a pattern
    return texts


def _params(
    text: str,
    folder: Path,
    images: Path | None,
    encoder: str | None,
    name: str | None,
    given: Mapping[str, Any] | None,
) -> str:
    if name is not None or images is None:
        text = edited(text, preset(name or _DEFAULT), _WHOLE)
    if images is None and encoder is None and not given:
        return text
    known = read_yaml(text)
    before = set(known["dataset"])
    if images is not None:
        known["dataset"] = {key: value for key, value in known["dataset"].items() if key not in ("root", "title")}
        known["dataset"] |= {"name": "folder", "train": str(images), "validation": None, "test": None}
    found = settings_for(images, encoder, parse_settings(known, source="the new params.yaml"), given)
    values = (placed(found, Path(), folder) if given else found).model_dump(mode="json")
    changes = {key: values[key] for key in ("encoders", "encoder_options")}
    if images is not None:
        plain = Settings().dataset.model_dump(mode="json")
        own = placed(found, Path(), folder).dataset.model_dump(mode="json")
        changes["dataset"] = {key: own[key] for key in own if key in before or own[key] != plain[key]}
    return edited(text, changes, _WHOLE)


def _refuse(folder: Path, files: dict[str, str], git: bool, dvc: bool) -> None:
    """Raise where a file of someone's would be replaced, or a program is missing: nothing has been written yet."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file: name a folder, which may be new")
    taken = [name for name, text in files.items() if _differs(folder / name, text)]
    if taken:
        raise DataError(f"{folder} has {', '.join(taken)} already, which would be overwritten: name another folder")
    if git and shutil.which("git") is None:
        raise ResourceError("git is not there: install it, or pass --no-git")
    if dvc and importlib.util.find_spec("dvc") is None:
        raise ResourceError("DVC is not there: pip install 'clpdd[pipeline]', or pass --no-dvc")
    if git and _top(folder) is None and (folder / ".git").exists():
        raise DataError(
            f"{folder / '.git'} is there, and git finds no repository in it: move it away, or pass --no-git"
        )
    if dvc and (folder / ".dvc").exists() and not (folder / ".dvc" / "config").exists():
        raise DataError(f"{folder / '.dvc'} is there without its file config: move it away, or pass --no-dvc")


def _differs(path: Path, text: str) -> bool:
    """Whether something else lies at ``path``; the same file may, of an ``init`` that was killed."""
    if not path.exists() and not path.is_symlink():
        return False
    with explain_os_errors("read", path):
        return not path.is_file() or path.read_bytes() != text.encode()


def _version(folder: Path, written: list[Path], git: bool, dvc: bool) -> None:
    """``git init`` and ``dvc init`` where they have not been done."""
    top = _top(folder, strict=git) if shutil.which("git") else None
    if git and top is None:
        written.append(folder / ".git")
        _run(folder, "git", "init", "--quiet")
        top = folder.resolve()
    if dvc and not (folder / ".dvc" / "config").exists():
        written.append(folder / ".dvc")
        place = ["--no-scm"] if top is None else ["--subdir"] if top != folder.resolve() else []
        _run(folder, sys.executable, "-m", "dvc", "init", "--quiet", *place)
        _run(folder, sys.executable, "-m", "dvc", "config", "core.analytics", "false")


def _top(folder: Path, strict: bool = True) -> Path | None:
    """The root of the git repository that ``folder``, which may be new, lies in; ``None`` where it lies in none.

    Where git finds one and refuses to use it (another owner, a newer format), it is an error if ``strict``.
    """
    there = next(path for path in (folder, *folder.resolve().parents) if path.is_dir())
    asked = ["git", "rev-parse", "--show-toplevel"]
    words = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(asked, cwd=there, env=words, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Path(done.stdout.strip()).resolve()
    if strict and "not a git repository" not in done.stderr:
        said = " ".join(done.stderr.split())
        raise DataError(f"git does not use the repository that {folder} lies in: {said}; mend that, or pass --no-git")
    return None


def _run(folder: Path, *command: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        name = " ".join(command[2:4] if command[1] == "-m" else command[:2])
        said = " ".join((done.stderr or done.stdout).split())
        raise SettingsError(
            f"`{name}` failed in {folder}: {said}. Nothing was kept; pass --no-git or --no-dvc to go on"
        )


@contextlib.contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """Hands out a list; what the block has put into it is removed when the block fails, and folders left empty."""
    written: list[Path] = []
    new = [path for path in (folder / "data", folder, *folder.parents) if not path.exists()]
    try:
        with explain_os_errors("make", folder):
            folder.mkdir(parents=True, exist_ok=True)
        yield written
    except BaseException:
        for path in written:
            remove(path)
        for path in new:
            with contextlib.suppress(OSError):  # never made, or no longer empty
                path.rmdir()
        raise
