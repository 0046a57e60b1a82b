"""Print DVC's own view of the project's stages as JSON: run as a script in the project's folder.

A separate process, because DVC's ``Repo`` is not made for threads and keeps the folder it was opened in. Run it
with ``python -P``: beside it lies ``dvc.py``, which must not be taken for the package ``dvc``. It imports what it needs
when it runs.
"""

from __future__ import annotations

import json
import sys

__all__ = ["describe"]


def describe() -> list[dict[str, object]]:
    """Every stage item in an order in which each comes after what it needs.

    Each is ``{name, commands, folder, upstream, inputs, outputs, always}``; matrix items appear one by one, as
    ``stage@item``.
    """
    import networkx
    from dvc.repo import Repo

    with Repo() as repo:
        graph = repo.index.graph  # an edge leads from a stage to what it needs
        ordered = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return [
            {
                "name": stage.addressing,
                "commands": stage.cmd if isinstance(stage.cmd, list) else (stage.cmd or "").splitlines(),
                "folder": stage.wdir,
                "upstream": sorted(other.addressing for other in graph.successors(stage)),
                "inputs": sorted({dep.fs_path for dep in stage.deps if dep.is_in_repo or dep.protocol == "local"}),
                "outputs": sorted(out.def_path for out in stage.outs),
                "always": bool(stage.always_changed),
            }
            for stage in ordered
        ]


if __name__ == "__main__":
    try:
        print(json.dumps(describe()))
    except Exception as error:
        from dvc.exceptions import DvcException

        if not isinstance(error, DvcException):
            raise
        sys.exit(f"DVC cannot read the project: {error}")
