"""The digest of the code that decides a result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import clpdd
from clpdd.config.distill import DistillSettings
from clpdd.encoders.encoder import Encoder
from clpdd.encoders.loading import join_encoders
from clpdd.methods.loading import modules_of
from clpdd.storage.provenance import code_digest, code_files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "clpdd"
    shutil.copytree(Path(clpdd.__file__).parent, root, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    return root


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_closure_of_the_kernels_holds_what_they_run_through() -> None:
    files = code_files("clpdd.stages.kernels")

    assert {
        "stages/kernels.py",
        "features/kernels.py",
        "features/store.py",
        "functional/moments.py",
        "storage/files.py",
        "storage/work.py",
        "errors.py",
    } <= {*files}
    assert not [name for name in files if name.startswith(("cli/", "runtime/", "datasets/", "config/"))]
    assert len(files) <= 15
    assert len(code_files("clpdd.stages.cache", "clpdd.encoders.joint")) <= 37
    assert files == sorted(files)


def test_digest_is_stable_and_depends_on_the_modules() -> None:
    assert code_digest("clpdd.stages.kernels") == code_digest("clpdd.stages.kernels")
    assert code_digest("clpdd.stages.kernels") != code_digest("clpdd.functional.resample")


def test_digest_is_the_same_for_a_copied_tree(tree: Path) -> None:
    assert code_digest("clpdd.functional.resample", root=tree) == code_digest("clpdd.functional.resample")


def test_digest_follows_transitive_changes_and_no_others(tree: Path, tmp_path: Path) -> None:
    before = code_digest("clpdd.stages.kernels", root=tree)
    other = tmp_path / "other" / "clpdd"
    shutil.copytree(tree, other)
    (other / "cli" / "main.py").write_text("# nobody imports me\n")
    assert code_digest("clpdd.stages.kernels", root=other) == before
    changed = tmp_path / "changed" / "clpdd"
    shutil.copytree(tree, changed)
    with (changed / "storage" / "files.py").open("a") as file:
        file.write("# changed\n")
    assert code_digest("clpdd.stages.kernels", root=changed) != before


@pytest.mark.parametrize(
    "line",
    [
        "from . import b",
        "from .b import something",
        "from clpdd import b",
        "from clpdd.b import something",
        "import clpdd.b",
        "import clpdd.b as other",
        "def late():\n    from .b import something",
        "try:\n    from .b import something\nexcept ImportError:\n    pass",
    ],
)
def test_every_form_of_import_is_followed(tmp_path: Path, line: str) -> None:
    root = write(tmp_path, {"__init__.py": "", "a.py": line, "b.py": "from .c import x", "c.py": "import os, numpy"})
    assert code_files("clpdd.a", root=root) == ["a.py", "b.py", "c.py"]


def test_packages_bring_their_init_and_relative_imports_climb(tmp_path: Path) -> None:
    files = {
        "__init__.py": "",
        "one/__init__.py": "from .inner import x",
        "one/inner.py": "from ..top import y",
        "one/deep/__init__.py": "",
        "one/deep/leaf.py": "from ...other import z\nfrom ..sibling import w",
        "one/sibling.py": "",
        "top.py": "",
        "other.py": "",
    }
    root = write(tmp_path, files)
    assert code_files("clpdd.one.deep.leaf", root=root) == sorted(files.keys() - {"__init__.py"})
    assert code_files("clpdd.one", root=root) == ["one/__init__.py", "one/inner.py", "top.py"]


def test_imports_for_the_type_checker_alone_do_not_count_and_cycles_end(tmp_path: Path) -> None:
    guarded = "if TYPE_CHECKING:\n    from .c import y\nelse:\n    import clpdd.d"
    a = f"from typing import TYPE_CHECKING\nfrom .b import x\n{guarded}"
    root = write(tmp_path, {"__init__.py": "", "a.py": a, "b.py": "from .a import y", "c.py": "", "d.py": ""})
    assert code_files("clpdd.a", root=root) == ["a.py", "b.py", "d.py"]


def test_an_unknown_module_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"clpdd\.kernel is no module"):
        code_digest("clpdd.kernel")


def test_a_method_that_starts_from_anothers_set_runs_through_the_code_of_both() -> None:
    assert modules_of("clp", DistillSettings()) == ("clpdd.methods.clp",)
    assert modules_of("neighbor", DistillSettings(neighbor_of="lgm")) == ("clpdd.methods.real", "clpdd.methods.lgm")


def test_an_encoder_runs_through_the_code_of_its_architecture_where_that_is_ours(encoder: Encoder) -> None:
    ours = ("clpdd.encoders.encoder", "clpdd.encoders.architectures")
    assert encoder.code == ours
    assert "encoders/architectures.py" in code_files(*ours)
    assert "encoders/architectures.py" not in code_files("clpdd.encoders.encoder")
    timms = clpdd.load_encoder("resnet10t", image_size=32, untrained=0, device="cpu")
    assert timms.code == ("clpdd.encoders.encoder",)
    joined = join_encoders({encoder: 1.0, timms: 1.0}, device="cpu")
    assert joined.code == ("clpdd.encoders.joint", *ours)
