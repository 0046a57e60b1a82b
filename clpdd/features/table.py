"""Features as one Parquet table, for whatever else is to be done with them: retrieval, clustering, another probe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import ArtifactError, ResourceError
from ..storage.files import canonical_json, explain_os_errors, flush, staged
from .store import FeatureStore

__all__ = ["write_features"]

_ROWS = 8192  # of a row group, which is what memory holds


def write_features(stores: Sequence[FeatureStore], target: Path | str) -> Path:
    """Write the features of some splits by one encoder to a Parquet file, whole or not at all.

    A row for each image, in the order of ``stores`` and of their rows:

    - ``file`` (text): the image's path below its root, or what the index calls it where it is no file of its own;
    - ``split`` (text), ``label`` (int64, in [0, C)), ``class`` (text);
    - ``group`` (text), where the dataset has groups;
    - ``features``: ``d`` float32.

    The metadata hold the encoder (``Encoder.describe()``) and the names of the classes as JSON under ``clpdd``.
    ``datasets`` opens ``label`` as a ``ClassLabel``. The same stores give the same bytes.

    Args:
        stores: at least one; memory is bounded whatever their size.

    Raises:
        ArtifactError: the stores are of different encoders or classes, or damaged.
        ResourceError: ``target`` exists already, or cannot be written.
    """
    target, first = Path(target), stores[0]
    for store in stores:
        if store.encoder != first.encoder or store.class_names != first.class_names:
            raise ArtifactError(
                f"{store.path} and {first.path} are of different encoders or classes: run the stage cache again"
            )
    if target.exists():
        raise ResourceError(f"{target} exists already: choose another place, or remove it first")
    grouped = any(store.groups is not None for store in stores)
    schema = _schema(first, grouped)
    with explain_os_errors("write", target), staged(target) as staging:
        with pq.ParquetWriter(staging, schema, compression="zstd", use_dictionary=["split", "class"]) as writer:
            for store in stores:
                for start in range(0, len(store), _ROWS):
                    writer.write_table(_block(store, start, schema))
        flush(staging)
        os.replace(staging, target)
        flush(target.parent)
    return target


def _schema(store: FeatureStore, grouped: bool) -> pa.Schema:
    values = {name: {"dtype": "string", "_type": "Value"} for name in ("file", "split", "class", "group")}
    features = {
        "file": values["file"],
        "split": values["split"],
        "label": {"names": store.class_names, "_type": "ClassLabel"},
        "class": values["class"],
        **({"group": values["group"]} if grouped else {}),
        "features": {"feature": {"dtype": "float32", "_type": "Value"}, "length": store.dim, "_type": "Sequence"},
    }
    types = {"label": pa.int64(), "features": pa.list_(pa.float32(), store.dim)}
    return pa.schema(
        [(name, types.get(name, pa.string())) for name in features],
        metadata={
            "clpdd": canonical_json({"encoder": store.encoder, "class_names": store.class_names}),
            "huggingface": json.dumps({"info": {"features": features}}, sort_keys=True),
        },
    )


def _block(store: FeatureStore, start: int, schema: pa.Schema) -> pa.Table:
    """Rows from ``start`` on, ``_ROWS`` at most."""
    stop = min(start + _ROWS, len(store))
    labels = store.labels[start:stop].numpy()
    features = store.stored(start, stop).astype(np.float32)
    columns = {
        "file": store.ids[start:stop],
        "split": [store.split] * (stop - start),
        "label": labels,
        "class": [store.class_names[label] for label in labels.tolist()],
        "group": [None] * (stop - start) if store.groups is None else store.groups[start:stop],
        "features": pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), store.dim),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
