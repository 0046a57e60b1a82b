"""The table of results in the Prefect UI."""

from __future__ import annotations

from pathlib import Path
from statistics import stdev

import pyarrow as pa
import pyarrow.parquet as pq

from clpdd.flows.artifacts import result_rows


def test_the_spread_is_the_sample_standard_deviation_as_everywhere_else(tmp_path: Path) -> None:
    columns = {"distil_encoder": "e", "eval_encoder": "e", "protocol": "sgd", "views": "bank-4"}
    scores = {"clp": [90.0, 92.0], "random": [50.0, 52.0, 57.0], "full": [99.0]}
    rows = [columns | {"method": name, "top1": x, "top5": 100.0} for name, found in scores.items() for x in found]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "results.parquet")
    found = {row["method"]: row for row in result_rows(tmp_path / "results.parquet")}
    assert {name: (row["top1"], row["spread"], row["probes"]) for name, row in found.items()} == {
        "clp": (91.0, 1.41, 2),
        "random": (53.0, 3.61, 3),
        "full": (99.0, None, 1),
    }
    assert found["random"]["spread"] == round(stdev(scores["random"]), 2)
