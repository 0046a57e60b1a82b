"""What is seen of the images without opening them: names, sizes and times, or bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.sources.parquet_rows import names_files
from clpdd.datasets.watch import Seen, differences, look

TIME = 1_700_000_000_000_000_000


def put(path: Path, data: bytes, time: int = TIME) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(time, time))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of one file each; what is in them does not matter here."""
    put(tmp_path / "photos" / "a" / "0.png", b"one")
    put(tmp_path / "photos" / "b" / "0.png", b"four")
    return tmp_path / "photos"


def seen(base: Path, **settings: Any) -> Seen:
    return look(DatasetSettings(**{"name": "folder", "train": "photos"} | settings), base)


def test_names_sizes_and_times_are_seen_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    found = seen(tmp_path)
    assert found.places == {"photos": {"a/0.png": f"3 {TIME}", "b/0.png": f"4 {TIME}"}}
    assert found.summary()["places"]["photos"] | {"digest": ""} == {"files": 2, "bytes": 7, "digest": ""}
    put(photos / ".DS_Store", b"x")
    put(photos / "a" / "Thumbs.db", b"x")
    put(photos / "b" / "._0.png", b"x")
    assert seen(tmp_path) == found
    assert seen(tmp_path).digest() == found.digest()


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "longer", "touched"])
def test_each_kind_of_change_is_another_digest_and_has_a_name(photos: Path, tmp_path: Path, change: str) -> None:
    before = seen(tmp_path)
    if change == "added":
        put(photos / "c" / "0.png", b"x")
    elif change == "removed":
        (photos / "b" / "0.png").unlink()
    elif change == "renamed":
        (photos / "b" / "0.png").rename(photos / "b" / "1.png")
    elif change == "longer":
        put(photos / "b" / "0.png", b"four and more")
    else:
        put(photos / "b" / "0.png", b"four", TIME + 1)
    after = seen(tmp_path)
    assert after.digest() != before.digest()
    assert differences(before.places, after.places) == [
        "images changed in photos: "
        + {
            "added": "1 added (c/0.png)",
            "removed": "1 removed (b/0.png)",
            "renamed": "1 added (b/1.png), 1 removed (b/0.png)",
            "longer": "1 changed (b/0.png)",
            "touched": "1 changed (b/0.png)",
        }[change]
    ]


def test_bytes_are_read_when_asked_for_and_times_then_tell_nothing(photos: Path, tmp_path: Path) -> None:
    before, read_before = seen(tmp_path), seen(tmp_path, watch="bytes")
    put(photos / "b" / "0.png", b"FOUR")  # the same size at the same time
    assert seen(tmp_path) == before
    read = seen(tmp_path, watch="bytes")
    assert differences(read_before.places, read.places) == ["images changed in photos: 1 changed (b/0.png)"]
    put(photos / "b" / "0.png", b"FOUR", TIME + 1)
    assert seen(tmp_path, watch="bytes").digest() == read.digest()
    assert read.places["photos"]["b/0.png"].startswith("4 ")


def test_linked_folders_and_files_are_seen_through_and_circles_end(photos: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "1.png", b"linked")
    (photos / "c").symlink_to(tmp_path / "elsewhere")
    (photos / "a" / "1.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "b" / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    before = seen(tmp_path)
    assert before.places["photos"] == {
        "a/0.png": f"3 {TIME}",
        "a/1.png": f"6 {TIME}",
        "b/0.png": f"4 {TIME}",
        "b/nowhere.png": "0 leads nowhere",
        "c/1.png": f"6 {TIME}",
    }
    put(tmp_path / "elsewhere" / "1.png", b"another")
    told = differences(before.places, seen(tmp_path).places)
    assert told == ["images changed in photos: 2 changed (a/1.png, c/1.png)"]


def test_a_name_that_is_not_utf_8_is_seen_and_told(photos: Path, tmp_path: Path) -> None:
    before = seen(tmp_path)
    put(Path(os.fsdecode(os.fsencode(photos / "a") + b"/\xff.png")), b"x")
    assert differences(before.places, seen(tmp_path).places) == ["images changed in photos: 1 added (a/\\udcff.png)"]
    assert len(seen(tmp_path).digest() or "") == 64


@pytest.mark.parametrize(
    ("name", "settings", "watched"),
    [
        ("digits", {}, {}),
        ("hf:owner/name", {"root": "cache"}, {}),
        ("hf:photos", {}, {"photos": ["a/0.png", "b/0.png"]}),
        ("torchvision:SVHN", {"root": "photos"}, {"photos": ["a/0.png", "b/0.png"]}),
        ("torchvision:SVHN", {"root": "photos", "download": True}, {}),
        ("cifar10", {"root": "photos"}, {"photos": ["a/0.png", "b/0.png"]}),
        ("cub200", {"root": "missing"}, {"missing": []}),
        (
            "folder",
            {"train": ["photos", "more"], "test": "held"},
            {"photos": ["a/0.png", "b/0.png"], "more": [], "held": []},
        ),
    ],
)
def test_every_layout_is_watched_where_its_files_lie(
    photos: Path, tmp_path: Path, name: str, settings: dict[str, Any], watched: dict[str, list[str]]
) -> None:
    found = look(DatasetSettings(name=name, **settings), tmp_path)
    assert {place: sorted(files) for place, files in found.places.items()} == watched
    assert (found.digest() is None) == (not watched)


def table(path: Path, images: Any) -> None:
    pq.write_table(pa.table({"image": images, "label": pa.array([0, 1], pa.int64())}), path)


def test_globs_and_shards_are_watched_file_by_file(tmp_path: Path) -> None:
    for number in (0, 1):
        table(tmp_path / f"train-{number}.parquet", pa.array([b"x", b"y"]))
    put(tmp_path / "other.txt", b"x")
    for pattern in ("train-*.parquet", "train-{0..1}.parquet"):
        found = seen(tmp_path, name="parquet", train=pattern)
        assert {place: [Path(name).name for name in sorted(files)] for place, files in found.places.items()} == {
            pattern: ["train-0.parquet", "train-1.parquet"]
        }


def test_images_that_parquet_files_name_are_watched_too(tmp_path: Path) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    (tmp_path / "set").mkdir()
    for name, images in {
        "null": pa.array(rows, kind),
        "no-bytes": pa.array([{"path": row["path"]} for row in rows], pa.struct({"path": pa.string()})),
    }.items():
        path = tmp_path / "set" / f"{name}.parquet"
        table(path, images)
        assert names_files(path, "image")
        put(tmp_path / "set" / "a.png", b"x")
        before = seen(tmp_path, name="parquet", train=f"set/{name}.parquet")
        put(tmp_path / "set" / "a.png", b"xyz")
        (line,) = differences(before.places, seen(tmp_path, name="parquet", train=f"set/{name}.parquet").places)
        assert line.endswith("set: 1 changed (a.png)")
        path.unlink()
    whole = tmp_path / "set" / "whole.parquet"
    table(whole, pa.array([{"bytes": b"x", "path": "a.png"}] * 2, kind))
    assert not names_files(whole, "image")


def test_the_pipelines_own_artifacts_are_no_images(photos: Path, tmp_path: Path) -> None:
    settings = DatasetSettings(name="cifar10", root=".")
    before = look(settings, tmp_path, [tmp_path / "data" / "index"])
    put(tmp_path / "data" / "index" / "train.parquet", b"x")
    put(tmp_path / "dvc.lock", b"x")
    assert look(settings, tmp_path, [tmp_path / "data" / "index"]) == before
    put(tmp_path / "data" / "test_batch.bin", b"x")
    assert look(settings, tmp_path, [tmp_path / "data" / "index"]) != before
