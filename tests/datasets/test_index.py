"""An index read back."""

from __future__ import annotations

import multiprocessing
import pickle
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from clpdd.datasets.index import Index
from clpdd.errors import ArtifactError
from clpdd.storage.files import sha256_bytes


def test_rows_beyond_the_index_are_index_errors(digits: Path) -> None:
    index = Index.open(digits / "test.parquet")
    for row in (-1, len(index), 10**12):
        with pytest.raises(IndexError):
            index.image(row)


def test_rows_come_right_in_any_order_across_row_groups(digits: Path) -> None:
    index = Index.open(digits / "train.parquet")
    assert pq.ParquetFile(index.path).num_row_groups > 1
    expected = pq.read_table(index.path).column("bytes").to_pylist()
    for row in np.random.default_rng(0).permutation(len(index))[:60]:
        assert index.encoded(int(row)) == expected[row]


class _Slow(OrderedDict[int, Any]):
    """Row groups that are held, of a machine on which another thread gets a turn while one is found."""

    def move_to_end(self, key: int, last: bool = True) -> None:
        time.sleep(1e-4)
        super().move_to_end(key, last)


def test_several_threads_read_the_same_index(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pq.read_table(digits / "train.parquet").slice(0, 9)
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=3, write_page_checksum=True)  # two are held
    index, expected = Index.open(tmp_path / "train.parquet"), table.column("bytes").to_pylist()
    monkeypatch.setattr(index, "_groups", _Slow())
    rows = np.random.default_rng(0).integers(0, len(index), 1000).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(index.encoded, rows))
    assert found == [expected[row] for row in rows]


def _encoded_in_child(index: Index, row: int, queue: multiprocessing.Queue[bytes]) -> None:
    queue.put(index.encoded(row))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_index_travels_to_other_processes_as_its_path(digits: Path, method: str) -> None:
    index = Index.open(digits / "train.parquet")
    assert len(pickle.dumps(index)) < 500
    expected = index.encoded(1200), index.encoded(3)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_encoded_in_child, args=(index, 1200, queue))
    child.start()
    assert (queue.get(timeout=60), index.encoded(3)) == expected
    child.join(60)
    assert child.exitcode == 0


def test_digest_is_that_of_the_file(digits: Path) -> None:
    index = Index.open(digits / "test.parquet")
    assert index.digest == sha256_bytes((digits / "test.parquet").read_bytes())


def test_a_missing_index_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist: run the stage"):
        Index.open(tmp_path / "train.parquet")
    with pytest.raises(ArtifactError):
        Index.open(tmp_path)


def test_foreign_files_are_artifact_errors(tmp_path: Path, digits: Path) -> None:
    path = tmp_path / "train.parquet"
    for data in (b"", b"PAR1", b"hello" * 100):
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="damaged"):
            Index.open(path)
    table = pq.read_table(digits / "test.parquet")
    pq.write_table(table.replace_schema_metadata(None), path)
    with pytest.raises(ArtifactError, match="no index of this program"):
        Index.open(path)
    pq.write_table(table.drop_columns(["sha256"]), path)
    with pytest.raises(ArtifactError, match="no index of this program"):
        Index.open(path)
    for record in (b"", b"{}", b"[1]", b"nonsense", b'{"format": 99}'):
        pq.write_table(table.replace_schema_metadata({b"clpdd": record}), path)
        with pytest.raises(ArtifactError, match="run the stage index"):
            Index.open(path)


def test_damage_anywhere_is_an_artifact_error_or_harmless(digits: Path, tmp_path: Path) -> None:
    """A flipped byte never yields an image other than the one that was stored."""
    whole = (digits / "validation.parquet").read_bytes()
    original = Index.open(digits / "validation.parquet")
    expected = [original.encoded(row) for row in range(len(original))]
    generator = np.random.default_rng(0)
    path, noticed = tmp_path / "validation.parquet", 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] ^= int(generator.integers(1, 256))
        path.write_bytes(damaged)
        try:
            index = Index.open(path)
            assert [index.encoded(row) for row in range(len(index))] == expected
            assert index.ids == original.ids
            assert index.labels.tolist() == original.labels.tolist()
        except ArtifactError:
            noticed += 1
    assert noticed > 20
    for length in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="damaged"):
            Index.open(path)
