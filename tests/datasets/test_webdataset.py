"""WebDataset shards: read as WebDataset reads them, nothing unpacked, nothing run."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.distilled.dataset import DistilledSet
from clpdd.distilled.export import export
from clpdd.errors import DataError
from clpdd.storage.files import read_json

from .pictures import pixel, png

Member = tuple[str, bytes]


def shard(path: Path, members: list[Member]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(numbers: range, classes: int = 3, folder: str = "", label: Any = lambda k: str(k)) -> list[Member]:
    return [
        member
        for k in numbers
        for member in ((f"{folder}{k:04d}.cls", label(k % classes).encode()), (f"{folder}{k:04d}.png", png(k)))
    ]


def read(tmp_path: Path, **options: Any) -> dict[str, Index]:
    settings = DatasetSettings(name="webdataset", **({"train": "s-*.tar"} | options))
    return {split: Index.open(path) for split, path in build_index(settings, 0, tmp_path / "out", tmp_path).items()}


def told(indexes: dict[str, Index]) -> dict[int, str]:
    return {pixel(x, row): x.class_names[x.labels[row]] for x in indexes.values() for row in range(len(x))}


def test_shards_are_read_in_order_and_split(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / f"s-{number:03d}.tar", samples(range(20 * number, 20 * number + 20)))
    found = read(tmp_path)
    assert found["train"].class_names == ["0", "1", "2"]
    assert told(found) == {k: str(k % 3) for k in range(60)}
    order = [pixel(found["train"], row) for row in range(len(found["train"]))]
    assert order == sorted(order)
    assert found["train"].ids[0] == f"s-000/{order[0]:04d}.png"
    first = {split: index.digest for split, index in found.items()}
    assert {split: index.digest for split, index in read(tmp_path).items()} == first
    for way in ("s-{000..002}.tar", "s-00{0,1,2}.tar", ["s-000.tar", "s-00[12].tar"]):
        assert {split: index.digest for split, index in read(tmp_path, train=way).items()} == first
    named = read(tmp_path, train=str(tmp_path / "s-*.tar"), store="paths")
    assert told(named) == told(found)
    assert all(named["test"].encoded(row) == png(pixel(named["test"], row)) for row in range(len(named["test"])))


def test_given_splits_words_and_json(tmp_path: Path) -> None:
    words = ["dog", "cat", "eel"]
    shard(tmp_path / "s-0.tar", samples(range(30), label=lambda k: words[k] + "\n"))
    facts = [
        (f"{k}.{e}", d)
        for k in range(30, 36)
        for e, d in (("PNG", png(k)), ("json", json.dumps({"label": words[k % 3], "place": "land"}).encode()))
    ]
    shard(tmp_path / "test.tar", facts)
    found = read(tmp_path, test="test.tar")
    assert found["test"].class_names == ["cat", "dog", "eel"]
    assert told(found) == {k: words[k % 3] for k in range(36)}
    with pytest.raises(DataError, match=r"s-0\.tar, sample 0000 has no group 'place' in \.json"):
        read(tmp_path, test="test.tar", group_column="place")


def test_groups_other_columns_and_further_files_of_a_sample(tmp_path: Path) -> None:
    held: list[Member] = [
        ("README.txt", b"about"),
        ("./list.csv", b"1,2"),
        ("._0000.png", b"clutter"),
        ("__MACOSX/0.png", b"x"),
    ]
    for k in range(30):
        held += [
            (f"a/{k}.left.png", png(k)),
            (f"a/{k}.right.png", png(100 + k)),
            (f"a/{k}.json", json.dumps({"fine": k % 3, "label": 7, "place": ["land", "water"][k % 2]}).encode()),
            (f"a/{k}.txt", b"a caption"),
        ]
    shard(tmp_path / "s-0.tar", held)
    found = read(tmp_path, image_column="right.png", label_column="fine", group_column="place")
    assert told(found) == {100 + k: str(k % 3) for k in range(30)}
    for index in found.values():
        assert index.groups == [["land", "water"][pixel(index, row) % 2] for row in range(len(index))]


def test_what_export_writes_is_read_with_its_class_names(tmp_path: Path) -> None:
    images = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 3, 8, 8).contiguous()
    names = ["zwei", "eins", "null"]
    made = DistilledSet(images, torch.arange(30) % 3, names, {"method": "clp", "dataset": "d"}).save(tmp_path / "set")
    export(made, "webdataset", tmp_path / "s-0.tar")
    found = read(tmp_path)
    assert found["train"].class_names == names
    for index in found.values():
        for row in range(len(index)):
            assert np.asarray(index.image(row))[0, 0, 0] % 3 == index.labels[row]
    assert read(tmp_path, class_names=["a", "b", "c"])["train"].class_names == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "a\\..\\evil.png"])
def test_names_that_leave_the_shard_are_refused(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "s-0.tar", [*samples(range(30)), (name, png(1))])
    with pytest.raises(DataError, match=r"s-0\.tar: the name .* leaves the folder"):
        read(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    path = shard(tmp_path / "s-0.tar", samples(range(30)))
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("9999.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match="is no plain file: that is refused"):
        read(tmp_path)


def test_compressed_damaged_and_missing_shards_are_named(tmp_path: Path) -> None:
    whole = shard(tmp_path / "s-0.tar", samples(range(30))).read_bytes()
    (tmp_path / "packed.tar").write_bytes(gzip.compress(whole))
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    block = len(whole) // 1024 * 512
    (tmp_path / "at-a-block.tar").write_bytes(whole[:block])
    (tmp_path / "no-end.tar").write_bytes(whole[: 60 * 1024])
    (tmp_path / "header.tar").write_bytes(whole[:30720] + b"\1" + whole[30721:])  # of a member in the middle
    (tmp_path / "text.tar").write_text("no archive " * 100)
    (tmp_path / "folder").mkdir()
    for train, said in (
        ("packed.tar", r"packed\.tar is compressed.*unpack it to \.tar"),
        ("cut.tar", r"cut\.tar is damaged or cut short"),
        ("at-a-block.tar", r"block\.tar is damaged or cut short"),
        ("no-end.tar", r"no-end\.tar is damaged or cut short"),
        ("header.tar", r"header\.tar is damaged or cut short \(after 30720 bytes\)"),
        ("text.tar", r"text\.tar is damaged or cut short"),
        ("nothing-*.tar", "no file matches"),
        ("folder", r"is a folder: name the files in it, e\.g\. folder/train-\*\.tar"),
        ("s-{0..1}.tar", r"no file matches .*s-1\.tar"),
        ([], "empty list"),
    ):
        with pytest.raises(DataError, match=said):
            read(tmp_path, train=train)
    (tmp_path / "unpacked.tar").write_bytes(gzip.decompress((tmp_path / "packed.tar").read_bytes()))
    assert len(told(read(tmp_path, train="unpacked.tar"))) == 30  # the remedy


def test_bombs_are_refused_by_what_they_claim(tmp_path: Path) -> None:
    shard(tmp_path / "s-0.tar", [*samples(range(30)), ("big.cls", b"1" * (2 << 20)), ("big.png", png(1))])
    with pytest.raises(DataError, match=r"sample big: \.cls claims 2097152 bytes"):
        read(tmp_path)
    shard(tmp_path / "s-0.tar", [*samples(range(30)), ("big.cls", b"1"), ("big.png", b"\x89PNG" + b"0" * (2 << 20))])
    with pytest.raises(DataError, match=r"member big\.png: the image is a file of 2097156 bytes"):
        read(tmp_path, max_pixels=1000)
    shard(tmp_path / "s-0.tar", [*samples(range(30)), ("deep.json", b"[" * 500_000), ("deep.png", png(1))])
    with pytest.raises(DataError, match=r"sample deep: \.json cannot be read"):
        read(tmp_path)


def test_samples_that_are_not_whole_are_named(tmp_path: Path) -> None:
    for extra, said in (
        ([("x.png", png(99))], r"sample x has no label: neither \.cls nor \.label.*it has \.png"),
        ([("x.png", png(99)), ("x.jpg", png(98)), ("x.cls", b"1")], r"several images, \.png, \.jpg.*image_column"),
        ([("x.png", png(99)), ("x.png", png(98)), ("x.cls", b"1")], r"holds 'x\.png' twice"),
        ([("x.png", png(99)), ("x.cls", b"")], r"\.cls is empty"),
        ([("x.png", png(99)), ("x.cls", b"\xff\xfe")], r"\.cls cannot be read as UTF-8"),
        ([("x.png", png(99)), ("x.cls", b"cat")], "holds words and numbers"),
        ([("x.png", png(99)), ("x.cls", b"-1")], "label -1"),
    ):
        shard(tmp_path / "s-0.tar", [*samples(range(30)), *extra])
        with pytest.raises(DataError, match=said):
            read(tmp_path)
    shard(tmp_path / "s-0.tar", [*samples(range(30)), ("x.cls", b"1")])
    with pytest.raises(DataError, match="sample x: the image is not there"):
        read(tmp_path)
    assert len(told(read(tmp_path, bad_images="skip"))) == 30
    assert [item["id"] for item in read_json(tmp_path / "out/summary.json")["skipped"]] == ["s-0/x"]


def test_gapped_labels_and_shards_of_one_name_in_several_folders(tmp_path: Path) -> None:
    shard(tmp_path / "a/s-0.tar", samples(range(30), label=lambda k: str(10 * k + 5)))
    shard(tmp_path / "b/s-0.tar", samples(range(30, 60), label=lambda k: str(10 * k + 5)))
    found = read(tmp_path, train=["a/s-0.tar", "b/s-0.tar"])
    assert told(found) == {k: str(10 * (k % 3) + 5) for k in range(60)}
    ids = {name for index in found.values() for name in index.ids}
    assert len(ids) == 60
    assert {name.split("/")[0] for name in ids} == {"0", "1"}
