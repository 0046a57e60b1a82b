"""``params.yaml`` as typed settings: read once, refused by name, immutable afterwards."""

from __future__ import annotations

from .catalogue import CATALOGUE, Entry, entry
from .known import KNOWN_ENCODERS, KnownEncoder
from .loading import load_settings, parse_settings
from .sections import (
    AugmentSettings,
    BenchmarkSettings,
    CacheSettings,
    DistillSettings,
    EvaluateSettings,
    KernelSettings,
    ReportSettings,
    RuntimeSettings,
)
from .settings import Settings
from .sources import DatasetSettings, EncoderOptions, SplitLimits
from .variants import BUILT_IN, Variant, resolve

__all__ = [
    "BUILT_IN",
    "CATALOGUE",
    "KNOWN_ENCODERS",
    "AugmentSettings",
    "BenchmarkSettings",
    "CacheSettings",
    "DatasetSettings",
    "DistillSettings",
    "EncoderOptions",
    "Entry",
    "EvaluateSettings",
    "KernelSettings",
    "KnownEncoder",
    "ReportSettings",
    "RuntimeSettings",
    "Settings",
    "SplitLimits",
    "Variant",
    "entry",
    "load_settings",
    "parse_settings",
    "resolve",
]
