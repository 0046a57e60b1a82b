"""The same flow on a Dask cluster: independent stages spread over processes or machines that share the workspace.

Needs the extra ``dask``. ``CLPDD_DASK`` names the scheduler of a cluster that exists already
(``tcp://host:8786``); without it a cluster of two local processes is started for the run.

Limits: every machine must see the same project folder under the same path, on a file system whose ``flock`` holds
across machines (NFS 4, Lustre with ``-o flock``); DVC's own commands run one at a time; a machine that is lost is
noticed by Dask, which gives its stage to another, where it resumes from the work folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, cast

from prefect_dask import DaskTaskRunner

from .pipeline import main as run
from .pipeline import pipeline

__all__ = ["ADDRESS", "pipeline_on_dask", "runner"]

ADDRESS = "CLPDD_DASK"


def runner(address: str | None = None) -> DaskTaskRunner:
    """A task runner for the cluster at ``address``, or for two processes of one thread each on this machine."""
    if address:
        return DaskTaskRunner(address=address)
    return DaskTaskRunner(
        cluster_kwargs={
            "n_workers": 2,
            "threads_per_worker": 1,
            "processes": True,
            "host": "127.0.0.1",
            "dashboard_address": None,
        }
    )


pipeline_on_dask = pipeline.with_options(task_runner=cast(Any, runner(os.environ.get(ADDRESS))))


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m clpdd.flows.scale``: as ``python -m clpdd.flows.pipeline``, on Dask."""
    return run(arguments, pipeline_on_dask)


if __name__ == "__main__":
    sys.exit(main())
