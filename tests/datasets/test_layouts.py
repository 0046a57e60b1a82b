"""Every named dataset, from a small tree in its true layout: class names, splits, groups, refusals."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from clpdd.catalogue.datasets import CATALOGUE, LAYOUTS, entry
from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.datasets.sources.archives import members, nested_members, read_members
from clpdd.datasets.sources.imagenet import subset, wordnet_ids
from clpdd.errors import ArtifactError, DataError
from clpdd.storage.layout import SPLITS
from tests.datasets.building import build
from tests.trees import TREES, imagenet_archives, imagenet_folder, imagenet_kaggle, imagenet_shards, jpeg, pack

TEN = "imagenet-imagewoof"
NAMED = [name for name, known in CATALOGUE.items() if known.layout not in ("digits", "parquet", "folder", "webdataset")]
SMALL = [n for n in NAMED if entry(n).classes <= 10 and n not in ("imagenet-a", "imagenet-b", "imagenet-c")]


def seen(indexes: dict[str, Index]) -> list[tuple[str, str]]:
    """Id and class of every image."""
    pairs = ((x, row) for x in indexes.values() for row in range(len(x)))
    return sorted((x.ids[row], x.class_names[x.labels[row]]) for x, row in pairs)


def test_every_entry_has_a_reader_and_every_reader_an_entry() -> None:
    layouts = {known.layout for known in CATALOGUE.values()} | {"hf", "torchvision"}
    assert layouts == LAYOUTS.keys()


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "flowers102", "cub200", "stanford-dogs", "food101", "artbench", "waterbirds"]
)
def test_published_datasets_are_indexed_with_every_class_and_their_own_splits(tmp_path: Path, name: str) -> None:
    known = entry(name)
    per_class = 3
    TREES[name](tmp_path / "root", name, per_class)
    found = build(tmp_path, name)
    assert all(index.dataset == name and len(index.class_names) == known.classes for index in found.values())
    assert all(set(index.labels) == set(range(known.classes)) for index in found.values())
    share = 2 if known.groups else 1
    assert len(found["test"]) == known.classes * share * (per_class if known.groups else 1)
    own_validation = name in ("flowers102", "waterbirds")
    training = len(found["train"]) + (0 if own_validation else len(found["validation"]))
    assert training == known.classes * per_class * share
    assert not {*found["train"].ids} & {*found["validation"].ids}
    assert (found["test"].groups is not None) == known.groups
    assert found["test"].image(0).mode == "RGB"


@pytest.mark.parametrize("tree", [imagenet_folder, imagenet_archives, imagenet_kaggle, imagenet_shards])
@pytest.mark.parametrize("name", [TEN])
def test_imagenet_is_read_from_every_layout_people_have(
    tmp_path: Path, name: str, tree: Callable[[Path, str], None]
) -> None:
    tree(tmp_path / "root", name)
    found = build(tmp_path, name)
    assert len(found["train"]) + len(found["validation"]) == 30
    assert sorted(found["test"].labels) == list(range(10))
    assert found["train"].class_names[:2] == ["Australian terrier", "Border terrier"]
    if tree is not imagenet_shards:  # ids there are rows; here they carry the WordNet id of their class
        ids = subset(name)
        for index in (found["train"], found["validation"]):
            assert all(ids[label] in i for i, label in zip(index.ids, index.labels, strict=True))


def test_archives_and_folders_give_the_same_images(tmp_path: Path) -> None:
    imagenet_archives(tmp_path / "root", TEN, unpacked_kit=True)
    packed = build(tmp_path, TEN)
    with tarfile.open(tmp_path / "root/ILSVRC2012_img_train.tar") as outer:
        for member in outer:
            stretch = outer.extractfile(member)
            with tarfile.open(fileobj=stretch) as inner:
                inner.extractall(tmp_path / f"root/train/{member.name.removesuffix('.tar')}", filter="data")
    with tarfile.open(tmp_path / "root/ILSVRC2012_img_val.tar") as archive:
        archive.extractall(tmp_path / "root/val", filter="data")
    (tmp_path / "root/ILSVRC2012_img_train.tar").rename(tmp_path / "away.tar")
    unpacked = build(tmp_path, TEN)  # flat validation folder, labels from the unpacked kit
    for split in SPLITS:
        assert [packed[split].encoded(r) for r in range(len(packed[split]))] == [
            unpacked[split].encoded(r) for r in range(len(unpacked[split]))
        ]
        assert packed[split].labels.tolist() == unpacked[split].labels.tolist()


def test_subsets_are_lists_of_imagenet_classes_and_all_class_names_differ() -> None:
    known = set(wordnet_ids())
    for name, data in CATALOGUE.items():
        if data.layout == "imagenet":
            ids = subset(data.options["subset"])
            assert len(ids) == len(set(ids)) == data.classes, name
            assert set(ids) <= known
    from clpdd.datasets.sources.imagenet import _readable

    names = _readable(wordnet_ids())
    assert len(set(names)) == 1000
    assert "crane (n02012849)" in names


def test_cifar_pixels_are_those_of_the_file_and_archives_are_read_in_place(tmp_path: Path) -> None:
    TREES["cifar10"](tmp_path / "root", "cifar10", 3)
    folder = tmp_path / "root/cifar-10-batches-bin"
    found = build(tmp_path, "cifar10", duplicates="allow")
    raw = np.frombuffer((folder / "test_batch.bin").read_bytes(), np.uint8).reshape(-1, 3073)
    for row in range(10):
        assert np.array_equal(np.asarray(found["test"].image(row)), raw[row, 1:].reshape(3, 32, 32).transpose(1, 2, 0))
    files = [(f"cifar-10-batches-bin/{p.name}", p.read_bytes()) for p in sorted(folder.iterdir())]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    pack(tmp_path / "root/cifar-10-binary.tar.gz", files, "w:gz")
    assert seen(build(tmp_path, "cifar10")) == seen(found)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "root/cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds pickles.*binary version"):
        build(tmp_path, "cifar10")
    with pytest.raises(DataError, match="torchvision:CIFAR10 loads pickles"):
        build(tmp_path, "torchvision:CIFAR10")


@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("imagenet-d", "imagenet-e")])
def test_a_folder_of_another_kind_is_refused_by_what_was_looked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "root/holiday").mkdir(parents=True)
    with pytest.raises(DataError) as refused:
        build(tmp_path, name)
    assert f"does not look like {name}. Looked for" in str(refused.value)
    assert "The folder holds holiday" in str(refused.value)


def test_incomplete_trees_are_refused_by_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    imagenet_folder(root, TEN)
    (root / f"train/{subset(TEN)[3]}").rename(root / "gone")
    with pytest.raises(DataError, match=f"lacks 1 of the 10 class folders.*{subset(TEN)[3]}"):
        build(tmp_path, TEN)
    TREES["flowers102"](tmp_path / "flowers", "flowers102", 1)
    (tmp_path / "flowers/flowers-102/setid.mat").write_bytes(b"no such thing")
    with pytest.raises(DataError, match=r"setid\.mat is no MAT file"):
        build(tmp_path, "flowers102", root=str(tmp_path / "flowers"))
    with pytest.raises(DataError, match="does not exist"):
        build(tmp_path, "cub200", root=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["../evil.JPEG", "/etc/evil.JPEG", "a/../../evil.JPEG", "a\\..\\evil.JPEG"])
def test_members_that_leave_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "a.tar", [("good.JPEG", jpeg()), (name, jpeg())])
    with pytest.raises(DataError, match="leaves the folder"):
        list(members(tmp_path / "a.tar"))
    with pytest.raises(DataError, match="leaves the folder"):
        read_members(tmp_path / "a.tar", ["evil.JPEG"])
    pack(tmp_path / "outer.tar", [("n1.tar", (tmp_path / "a.tar").read_bytes())])
    with pytest.raises(DataError, match=r"outer\.tar, member n1\.tar.*leaves the folder"):
        list(nested_members(tmp_path / "outer.tar", {"n1"}))


def test_what_a_mac_packs_beside_the_images_is_passed_over(tmp_path: Path) -> None:
    pack(
        tmp_path / "a.tar",
        [(f"{k}/{name}", jpeg()) for k in ("n1", "__MACOSX") for name in ("._x.JPEG", "x.JPEG", ".DS_Store")],
    )
    assert [file.name for file in members(tmp_path / "a.tar")] == ["n1/x.JPEG"]
    TREES["spawrious-o2o-easy"](tmp_path / "root", "spawrious-o2o-easy", 3)
    expected = seen(build(tmp_path, "spawrious-o2o-easy"))
    for picture in list((tmp_path / "root").rglob("*.png")):
        (picture.parent / f"._{picture.name}").write_bytes(b"clutter")
    assert seen(build(tmp_path, "spawrious-o2o-easy")) == expected


def test_links_in_archives_and_paths_in_lists_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="is no plain file"):
        list(members(tmp_path / "a.tar"))
    TREES["waterbirds"](tmp_path / "root", "waterbirds", 1)
    table = tmp_path / "root/waterbird_complete95_forest2water2/metadata.csv"
    table.write_text(table.read_text() + "99,../../secret.jpg,0,0,0,x\n")
    with pytest.raises(DataError, match=r"secret\.jpg.*leaves the folder"):
        build(tmp_path, "waterbirds")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    imagenet_archives(root, TEN)
    whole = (root / "ILSVRC2012_img_train.tar").read_bytes()
    for data in (whole[: len(whole) // 2 + 100], b"\x00garbage" * 200, whole[:-20_000]):
        (root / "ILSVRC2012_img_train.tar").write_bytes(data)
        with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar"):
            build(tmp_path, TEN)
    (root / "ILSVRC2012_img_train.tar").write_bytes(whole)
    kit = (root / "ILSVRC2012_devkit_t12.tar.gz").read_bytes()
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(kit[: len(kit) // 2])
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz is damaged"):
        build(tmp_path, TEN)
    stream = io.BytesIO()
    scipy.io.savemat(stream, {"other": np.zeros(2)})
    pack(
        root / "ILSVRC2012_devkit_t12.tar.gz",
        [("d/ILSVRC2012_validation_ground_truth.txt", b"1\n"), ("d/meta.mat", stream.getvalue())],
        "w:gz",
    )
    with pytest.raises(DataError, match="holds no variable 'synsets'"):
        build(tmp_path, TEN)


def test_torchvision_datasets_are_read_by_name(tmp_path: Path) -> None:
    TREES["torchvision:FashionMNIST"](tmp_path / "root", "torchvision:FashionMNIST", 5)
    found = build(tmp_path, "torchvision:FashionMNIST")
    assert found["train"].class_names[0] == "T-shirt/top"
    assert (len(found["train"]) + len(found["validation"]), len(found["test"])) == (50, 10)
    assert found["test"].labels.tolist() == list(range(10))
    with pytest.raises(DataError, match="did you mean FashionMNIST"):
        build(tmp_path, "torchvision:FashionMNITS")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"torchvision:FashionMNIST cannot be read from.*use dataset\.download: true"):
        build(tmp_path, "torchvision:FashionMNIST", root=str(tmp_path / "empty"))


def test_an_index_may_name_files_instead_of_holding_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    imagenet_archives(root, TEN)
    held = build(tmp_path, TEN, store="bytes")
    expected = {split: [x.encoded(r) for r in range(len(x))] for split, x in held.items()}
    named = build(tmp_path, TEN, store="paths")
    assert {split: [x.encoded(r) for r in range(len(x))] for split, x in named.items()} == expected
    assert (tmp_path / "index/train.parquet").stat().st_size < sum(map(len, expected["train"]))
    tar = root / "ILSVRC2012_img_train.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(expected["train"][0]) + 40] ^= 1
    tar.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"img_train\.tar was altered since"):
        named["train"].encoded(0)
    tar.unlink()
    with pytest.raises(ArtifactError, match="put it back"):
        named["train"].encoded(0)
    TREES["cifar10"](tmp_path / "cifar", "cifar10", 3)
    with pytest.raises(DataError, match=r"dataset\.store is paths, but the images of cifar10"):
        build(tmp_path, "cifar10", root=str(tmp_path / "cifar"), store="paths")


def test_a_killed_index_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clpdd.datasets import check

    imagenet_folder(tmp_path / "root", TEN, per_class=8)
    settings = DatasetSettings(name=TEN, root=str(tmp_path / "root"))
    whole = build_index(settings, 0, tmp_path / "whole")
    monkeypatch.setattr(check, "_CHUNK", 16)
    decoded: list[int] = []
    original = check.decode

    def stopping(data: bytes, max_pixels: int) -> Any:
        decoded.append(1)
        if len(decoded) == limit:
            raise KeyboardInterrupt
        return original(data, max_pixels)

    monkeypatch.setattr(check, "decode", stopping)
    limit, partial = 60, tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        build_index(settings, 0, tmp_path / "index", partial=partial)
    assert not (tmp_path / "index").exists()
    kept = len(list(partial.iterdir()))
    assert kept >= 2
    # a file that changed is read again, and so is a chunk that was damaged
    next(partial.iterdir()).write_bytes(b"damaged")
    before, limit = len(decoded), -1
    again = build_index(settings, 0, tmp_path / "index", partial=partial)
    assert 90 - 16 * kept <= len(decoded) - before < 90
    assert not partial.exists()
    assert {s: p.read_bytes() for s, p in again.items()} == {s: p.read_bytes() for s, p in whole.items()}


def test_a_changed_file_is_checked_again(tmp_path: Path) -> None:
    from clpdd.datasets.check import check
    from clpdd.datasets.listing import File, Files

    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    listing = Files([File(str(tmp_path), "a.jpg")], [0], 1 << 20)
    ((_, first),) = check(listing, np.arange(1), 10**6, "x", tmp_path / "partial")
    path.write_bytes(jpeg())
    os.utime(path, (1, 1))
    ((_, second),) = check(listing, np.arange(1), 10**6, "x", tmp_path / "partial")
    assert first.digests.tobytes() != second.digests.tobytes()
