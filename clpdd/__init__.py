"""Dataset distillation for linear probes over frozen vision encoders (CLP-DD, arXiv 2605.07194).

In ten lines, without settings files or DVC::

    import clpdd

    clpdd.index_arrays({"train": (images, labels)}, class_names, "run/index")
    work = clpdd.Workspace("run", "clpdd_resnet14")
    distilled = work.distill("clp", clpdd.DistillSettings(steps=200))
    print(work.evaluate("clp"))

Names are imported when first used: ``import clpdd`` itself is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "AugmentSettings": "config.augment",
    "CacheSettings": "config.cache",
    "ClpddError": "errors",
    "DatasetSettings": "config.dataset",
    "DistillSettings": "config.distill",
    "DistilledSet": "distilled.dataset",
    "Encoder": "encoders.encoder",
    "EvaluateSettings": "config.evaluate",
    "FeatureStore": "features.store",
    "Index": "datasets.index",
    "KernelSettings": "config.kernels",
    "Kernels": "features.kernels",
    "Results": "report.results",
    "Settings": "config.settings",
    "Workspace": "workspace",
    "build_index": "datasets.build",
    "index_arrays": "datasets.build",
    "join_encoders": "encoders.loading",
    "load_encoder": "encoders.loading",
    "load_settings": "config.loading",
}

__all__ = list(_WHERE)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'clpdd' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clpdd.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
