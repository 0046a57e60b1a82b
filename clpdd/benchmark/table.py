"""The table of a comparison: one row for each probe of each point of each distillation."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["LATER", "SCHEMA", "table_bytes"]

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("encoder", pa.string()),
        ("name", pa.string()),  # of the method or variant
        ("method", pa.string()),  # behind the name
        ("group", pa.string()),  # of an ablation: what is varied
        ("choice", pa.string()),  # and how
        ("reference", pa.string()),  # of a peer: whose time it was given a multiple of
        ("ipc", pa.int64()),  # null: all training images
        ("seed", pa.int64()),  # of the distillation
        ("draw", pa.int64()),  # of the method random
        ("step", pa.int64()),  # null, like the clock, for methods without steps
        ("last", pa.bool_()),  # whether it is the end of its distillation
        ("seconds", pa.float64()),  # wall clock of the steps alone
        ("forward", pa.int64()),  # images through the encoder so far
        ("backward", pa.int64()),
        ("peak_memory_mb", pa.float64()),  # of the distillation's process (its device where there is one)
        ("idle_memory_mb", pa.float64()),  # of it before the distillation began
        ("judge", pa.string()),  # test | validation: what the probe was scored on
        ("protocol", pa.string()),
        ("views", pa.string()),
        ("probe_seed", pa.int64()),
        ("top1", pa.float64()),  # percent
        ("top5", pa.float64()),
        ("changed", pa.string()),  # JSON: settings that differ from the section distill
        ("machine", pa.string()),
        ("versions", pa.string()),  # JSON
        ("command", pa.string()),
        ("fingerprint", pa.string()),  # of the distillation
        ("mean_per_class", pa.float64()),  # percent
        ("worst_group", pa.float64()),  # lowest top-1 of any group; null where the images have none
        ("setup_seconds", pa.float64()),  # before the first step: inputs, starting images, loading
        ("selection_seconds", pa.float64()),  # of a method without steps
        ("features_seconds", pa.float64()),  # of the stage cache, training and validation; 0: the method reads none
        ("kernels_seconds", pa.float64()),  # likewise of the stage kernels; null: no clock reading was there
        ("skipped", pa.string()),  # JSON: protocols of the settings that a comparison with one encoder does not run
        ("eval_encoder", pa.string()),  # that judged; null in older tables: the one that distilled
        (
            "few_shot",
            pa.string(),
        ),  # JSON: closed form on real images as they are, {"random": [[count, top1]], "herding"}
    ]
)
"""Columns of ``benchmark.parquet`` and ``ablations.parquet``."""

LATER = (
    "mean_per_class",
    "worst_group",
    "setup_seconds",
    "selection_seconds",
    "features_seconds",
    "kernels_seconds",
    "skipped",
    "eval_encoder",
    "few_shot",
)
"""Columns that older tables lack: read as null."""


def table_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Rows as Parquet, in their order."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="zstd")
    return sink.getvalue()
