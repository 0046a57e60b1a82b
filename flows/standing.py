"""Print what running one stage through DVC would mean now: run as a script in the project's folder, with its name.

``unchanged``, ``restorable`` (DVC's run cache has the outputs for what the stage reads now) or ``outdated``. A separate
process for the reasons given in ``graph.py``. ``dvc repro --dry`` does not tell: it looks the run cache up by what the
stage read last time, and so calls every stage cached whose dependencies have changed. It imports what it needs when it
runs.
"""

from __future__ import annotations

import sys

__all__ = ["standing"]


def standing(name: str) -> str:
    """How the stage item ``name`` stands. What it needs must be there already."""
    from dvc.repo import Repo
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc_data.hashfile.hash_info import HashInfo

    with Repo() as repo, repo.lock:
        (stage,) = repo.stage.collect(name)
        if not stage.changed():
            return "unchanged"
        if stage.changed_stage() or not stage.deps_cached():  # the lock file tells of something else: ask the run cache
            stage.save_deps()
            for out in stage.outs:
                out.hash_info = HashInfo()
        try:
            repo.stage_cache.restore(stage, dry=True)
        except RunCacheNotFoundError:
            return "outdated"
        return "restorable"


if __name__ == "__main__":
    try:
        print(standing(sys.argv[1]))
    except Exception as error:
        from dvc.exceptions import DvcException

        if not isinstance(error, DvcException):
            raise
        sys.exit(f"DVC cannot tell how {sys.argv[1]} stands: {error}")
