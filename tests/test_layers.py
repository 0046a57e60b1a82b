"""The order of the folders: what each may know, and that none knows more."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import clpdd

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "clpdd"
ORDER = (
    "errors",
    "catalogue",
    "runtime",
    "storage",
    "functional",
    "config",
    "distributed",
    "datasets",
    "encoders",
    "distilled",
    "features",
    "probe",
    "optimise",
    "methods",
    "evaluation",
    "report",
    "stages",
    "benchmark",
    "workspace",
    "cli",
)
"""From the ground up: a folder imports from those before it alone."""

FILES = sorted(PACKAGE.rglob("*.py"))
FACES = [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE]
SETTINGS = re.compile(r"\b(dataset|cache|kernels|distill|evaluate|benchmark|report|runtime|encoder_options)\.[a-z_]+\b")


def imports(path: Path, *, nested: bool = True) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with the dotted name it takes from; those for the type checker alone are left out."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts if path.name == "__init__.py" else parts[:-1]
    if path.name == "__init__.py":
        package = parts[:-1]
    tree = ast.parse(path.read_bytes())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree) if nested else tree.body:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


def folder(name: str) -> str:
    """The part of the package that a dotted name lies in."""
    return name.split(".")[1]


def test_the_page_on_the_pipeline_lists_the_folders_in_this_order() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    tree = page.partition("## The library")[2].partition("## The stages")[0]
    listed = re.findall(r"^\| `(\w+)(?:/|\.py)` \| ", tree, re.MULTILINE)
    assert tuple(listed) == ORDER


def test_the_package_has_few_loose_modules() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert len(loose) <= 6
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} <= {*ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_the_order_of_the_folders(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):  # what users import and what they run, above all folders
        return
    for _, name in imports(path):
        if name.startswith("clpdd.") and name != "clpdd.__version__":
            assert ORDER.index(folder(name)) <= ORDER.index(own), name


def test_modules_import_each_other_in_no_circle() -> None:
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in FILES}
    graph = {
        module: {
            target
            for _, name in imports(path)
            for target in (name, name.rpartition(".")[0])
            if target in known and target != module and path.name != "__init__.py"
        }
        for path in FILES
        for module in [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")]
    }
    open_, done = set(), set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in open_, " -> ".join([*way, module])
        if module in done:
            return
        open_.add(module)
        for target in sorted(graph[module]):
            visit(target, (*way, module))
        open_.discard(module)
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", FACES, ids=lambda path: path.parent.relative_to(PACKAGE).as_posix())
def test_inner_faces_say_what_the_folder_may_know_and_import_nothing(path: Path) -> None:
    tree = ast.parse(path.read_bytes())
    assert len((ast.get_docstring(tree) or "").split(". ")) > 1 or "\n\n" in (ast.get_docstring(tree) or "")
    assert len(tree.body) == 1


def test_an_import_inside_a_function_has_its_reason_beside_it() -> None:
    bare = []
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        tree = ast.parse("\n".join(lines))
        late = "imports what it needs" in (ast.get_docstring(tree) or "")
        for node in ast.walk(tree):
            inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not late
            for inner in ast.walk(node) if inside else ():
                if isinstance(inner, (ast.Import, ast.ImportFrom)):
                    said = lines[inner.lineno - 1] + lines[inner.lineno - 2]
                    if "#" not in said and "try:" not in said:
                        bare.append(f"{path.relative_to(ROOT)}:{inner.lineno}")
    assert bare == []


def test_the_mathematics_knows_torch_and_no_setting() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton", "clpdd"}  # Triton comes with torch for CUDA
    for path in (PACKAGE / "functional").glob("*.py"):
        assert {name.split(".")[0] for _, name in imports(path)} <= allowed, path
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not SETTINGS.search(node.value), (path, node.value)


@pytest.mark.parametrize("part", ["catalogue", "config"])
def test_settings_are_read_without_torch(part: str) -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((PACKAGE / part).glob("*.py"))]
    script = f"import sys, {', '.join(modules)}\nsys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_what_decides_no_byte_lies_apart() -> None:
    """``runtime`` is in no digest, so nothing of it may compute: it knows neither settings nor tensors' contents."""
    for path in (PACKAGE / "runtime").glob("*.py"):
        assert {folder(name) for _, name in imports(path) if name.startswith("clpdd.")} <= {"errors", "runtime"}, path


def test_every_public_name_leads_to_what_it_says() -> None:
    for name in clpdd.__all__:
        assert getattr(clpdd, name).__name__ == name
