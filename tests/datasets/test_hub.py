"""Datasets of the Hugging Face hub, from local copies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clpdd.errors import DataError
from tests.datasets.building import build
from tests.trees import jpeg, table

COLUMNS = ("picture", "kind")


def test_hub_datasets_are_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    names = ["ant", "bee", "cow"]
    for split, count in (("train", 30), ("validation", 6)):
        table(tmp_path / f"hub/data/{split}-00000-of-00001.parquet", [k % 3 for k in range(count)], COLUMNS, names)
    name, cache = f"hf:{tmp_path / 'hub'}", str(tmp_path / "cache")
    found = build(tmp_path, name, root=cache, image_column="picture", label_column="kind")
    assert found["test"].class_names == names
    assert (len(found["train"]) + len(found["validation"]), len(found["test"])) == (30, 6)
    assert found["test"].labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found["test"].encoded(0).startswith(b"\xff\xd8")  # as stored, not encoded afresh
    with pytest.raises(DataError, match=r"no column 'image' \(dataset\.image_column\); its columns: picture, kind"):
        build(tmp_path, name, root=cache)
    for missing in (str(tmp_path / "hub" / "data" / "none"), "./none", "../none", "~/none-of-mine"):
        with pytest.raises(DataError, match=r"cannot be had \(.*none.* is no folder\)"):
            build(tmp_path, f"hf:{missing}", root=cache)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([["dog", "cat", "eel"][k % 3] for k in range(30)], ["cat", "dog", "eel"]),
        ([k % 2 == 0 for k in range(30)], ["false", "true"]),
        ([2 * (k % 3) + 1 for k in range(30)], ["1", "3", "5"]),
        ([float(k % 3) for k in range(30)], ["0", "1", "2"]),
    ],
)
def test_labels_of_the_hub_may_be_words_or_leave_numbers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], names: list[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "hub").mkdir()
    features = {"image": {"_type": "Image"}, "label": {"dtype": pa.array(values).type.__str__(), "_type": "Value"}}
    features["label"]["dtype"] = {"double": "float64"}.get(features["label"]["dtype"], features["label"]["dtype"])
    images = pa.array(
        [{"bytes": jpeg(), "path": None} for _ in values], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    held = pa.table({"image": images, "label": values})
    pq.write_table(
        held.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "hub/train.parquet",
    )
    found = build(tmp_path, f"hf:{tmp_path / 'hub'}", root=str(tmp_path / "cache"))
    assert found["train"].class_names == names
    said = {True: "true", False: "false"}
    for index in found.values():
        for row, name in enumerate(index.ids):
            value = values[int(name[-6:])]
            word = (
                said[value] if isinstance(value, bool) else str(int(value)) if isinstance(value, float) else str(value)
            )
            assert index.class_names[index.labels[row]] == word
