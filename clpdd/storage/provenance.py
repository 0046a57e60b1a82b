"""Which code decides a result: the sources a module runs, and one digest over them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from .files import sha256_bytes, sha256_file

__all__ = ["PACKAGE", "code_digest", "code_files", "decides_nothing"]

_NAME = "clpdd"
_DECIDES_NOTHING = ("clpdd.catalogue", "clpdd.config.runtime", "clpdd.runtime")
"""Modules and folders that decide no byte of a result by themselves, so that no digest covers them: how a run shows
itself and stops, and the entries of catalogues and settings, whose values are in a stage's fingerprint. The package's
own face, a list of public names, is none either."""

PACKAGE = Path(__file__).parents[1]
"""The folder of the running package."""


def code_files(*modules: str, root: Path | None = None) -> list[str]:
    """Sources of the named modules and of everything they import from this package, transitively.

    The imports are read from the syntax tree; nothing is run. Imports inside functions count (they may run), those
    under ``if TYPE_CHECKING:`` do not (they never run).

    Modules that decide nothing (``clpdd.runtime``, ``clpdd.catalogue``, ``clpdd.config.runtime``) are left out. A
    module that is imported by a name in a string (a method, a protocol) must be named here.

    Args:
        modules: dotted names, e.g. ``"clpdd.stages.kernels"``.
        root: the package's folder; ``None`` takes the running one.

    Returns:
        Sorted POSIX paths relative to ``root``.

    Raises:
        ValueError: a name that is no module of the package.
    """
    return list(_closure(modules, root or PACKAGE))


def code_digest(*modules: str, root: Path | None = None) -> str:
    """Hex SHA-256 over the names and bytes of ``code_files(*modules)``."""
    return _digest(modules, root or PACKAGE)


def decides_nothing(module: str) -> bool:
    """Whether a module decides no byte of a result by itself, so that no digest covers it."""
    below = (module == name or module.startswith(f"{name}.") for name in _DECIDES_NOTHING)
    return module == _NAME or any(below)


@lru_cache(maxsize=64)
def _digest(modules: tuple[str, ...], root: Path) -> str:
    lines = [f"{name}\0{sha256_file(root / name)}\n" for name in _closure(modules, root)]
    return sha256_bytes("".join(lines).encode())


@lru_cache(maxsize=64)
def _closure(modules: tuple[str, ...], root: Path) -> tuple[str, ...]:
    found: dict[str, Path] = {}
    waiting = list(modules)
    for module in modules:
        if _source(module, root) is None:
            raise ValueError(f"{module} is no module of the package {_NAME} in {root}")
    while waiting:
        module = waiting.pop()
        path = _source(module, root)
        if path is None or module in found or decides_nothing(module):
            continue
        found[module] = path
        waiting.extend(_imports(module, path))
        # Importing a.b.c runs a and a.b first.
        if "." in module:
            waiting.append(module.rpartition(".")[0])
    return tuple(sorted(path.relative_to(root).as_posix() for path in found.values()))


def _source(module: str, root: Path) -> Path | None:
    package, *below = module.split(".")
    if package != _NAME:
        return None
    folder = root.joinpath(*below)
    if (folder / "__init__.py").is_file():
        return folder / "__init__.py"
    file = folder.with_suffix(".py")
    return file if below and file.is_file() else None


def _imports(module: str, path: Path) -> Iterator[str]:
    """Every dotted name that the module's imports may stand for; those that are no modules are dropped later."""
    parts = module.split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]
    for node in _running_nodes(ast.parse(path.read_bytes(), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))
