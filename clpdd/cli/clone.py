"""Whose code runs: that of the project one stands in, or of another clone that the environment is installed from."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..errors import SettingsError

__all__ = ["refuse_other_code"]

_PACKAGE = Path(__file__).resolve().parents[1]


def refuse_other_code(folder: Path, running: Path = _PACKAGE) -> None:
    """Raise ``SettingsError`` where the project around ``folder`` has a ``clpdd/`` of its own and another one runs.

    DVC records the project's own files, so a result of other code would be recorded as if it were of these.

    Args:
        folder: where the command was started.
        running: folder of the package that runs.
    """
    folder = folder.resolve()
    project = next((here for here in (folder, *folder.parents) if (here / "dvc.yaml").is_file()), None)
    if project is None or not (project / "clpdd" / "__init__.py").is_file():
        return
    own = (project / "clpdd").resolve()
    if own != running.resolve():
        raise SettingsError(
            f"the code in {running} would run, but this project has its own in {own}, which dvc.lock records. Run "
            f"`make install` in {project} and then `source .venv/bin/activate` there, or name the code for this "
            f"environment: export PYTHONPATH={shlex.quote(str(project))} (PYTHONPATH=. where dvc exp run makes copies)"
        )
