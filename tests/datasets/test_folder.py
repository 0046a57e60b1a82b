"""Image folders as they really come: good, odd and broken ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from clpdd.config.dataset import DatasetSettings
from clpdd.datasets.build import build_index
from clpdd.datasets.index import Index
from clpdd.errors import DataError
from clpdd.storage.files import read_json
from clpdd.storage.layout import SPLITS

from .pictures import png


def fill(root: Path, classes: dict[str, int], start: int = 0) -> Path:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png(start))
            start += 1
    return root


def folder(tmp_path: Path, **options: Any) -> dict[str, Index]:
    chosen = DatasetSettings(name="folder", **({"train": "images"} | options))
    paths = build_index(chosen, 0, tmp_path / "out/index", base=tmp_path)
    return {split: Index.open(path) for split, path in paths.items()}


def test_one_root_is_split(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"dog": 20, "cat": 10})
    indexes = folder(tmp_path)
    for index in indexes.values():
        assert index.class_names == ["cat", "dog"]
        for row, name in enumerate(index.ids):
            assert name.startswith(index.class_names[index.labels[row]] + "/")
            assert index.encoded(row) == (tmp_path / "images" / name).read_bytes()
    assert [len(indexes[split]) for split in SPLITS] == [21, 3, 6]


def test_three_roots_nested_files_odd_names_and_wrong_extensions(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"cat": 2, "dog": 2})
    fill(tmp_path / "b", {"cat": 1, "dog": 1}, 100)
    fill(tmp_path / "c", {"cat": 1, "dog": 0}, 200)
    (tmp_path / "a/cat/deep/er").mkdir(parents=True)
    (tmp_path / "a/cat/deep/er/née ü.JPG").write_bytes(png(300))  # a PNG, whatever it is called
    (tmp_path / "a/cat/no-extension").write_bytes(png(301))
    for clutter in (".DS_Store", "Thumbs.db", ".hidden.png"):
        (tmp_path / "a/cat" / clutter).write_text("clutter")
    (tmp_path / "a/README.md").write_text("about")
    indexes = folder(tmp_path, train="a", validation="b", test="c")
    assert indexes["train"].ids == [
        "cat/0.png",
        "cat/1.png",
        "cat/deep/er/née ü.JPG",
        "cat/no-extension",
        "dog/0.png",
        "dog/1.png",
    ]
    assert indexes["test"].labels.tolist() == [0]


def test_several_roots_make_one_split(tmp_path: Path) -> None:
    fill(tmp_path / "a", {"cat": 10, "dog": 10})
    fill(tmp_path / "b", {"cat": 10, "emu": 10}, 100)
    indexes = folder(tmp_path, train=["a", "b"])
    ids = [name for index in indexes.values() for name in index.ids]
    assert len(set(ids)) == 40
    assert {"0/cat/3.png", "1/cat/3.png", "1/emu/3.png"} <= set(ids)


def test_class_names_order_or_rename_the_folders(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"n01": 10, "n02": 10})
    renamed = folder(tmp_path, class_names=["tench", "goldfish"])["train"]
    assert renamed.class_names[renamed.labels[renamed.ids.index(renamed.ids[0])]] == "tench"
    ordered = folder(tmp_path, class_names=["n02", "n01"])["train"]
    assert all(name.startswith(ordered.class_names[ordered.labels[row]]) for row, name in enumerate(ordered.ids))
    for names in (["n01", "goldfish"], ["a", "b", "c"], ["n01"]):
        with pytest.raises(DataError, match=r"dataset\.class_names has"):
            folder(tmp_path, class_names=names)


def test_a_root_one_level_too_high_is_explained(tmp_path: Path) -> None:
    fill(tmp_path / "images/train", {"cat": 4, "dog": 4})
    fill(tmp_path / "images/val", {"cat": 4, "dog": 4}, 100)
    with pytest.raises(DataError, match=r"holds the folders train, val, which look like splits.*images/train"):
        folder(tmp_path)
    fill(tmp_path / "wrapped/images", {"cat": 4, "dog": 4}, 200)
    with pytest.raises(DataError, match="single folder, images, and that holds folders"):
        folder(tmp_path, train="wrapped")


def test_classes_may_be_called_like_splits(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"test": 10, "train": 10})
    assert folder(tmp_path)["train"].class_names == ["test", "train"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "imges"}, r"imges does not exist; did you mean images\?"),
        ({"train": "archive.zip"}, "is a file.*unpack"),
        ({"train": []}, "empty list"),
        ({"train": "hollow"}, "holds no class folder"),
        ({"train": "gap"}, "class folder 'b' in .* holds no image"),
        ({"train": "single"}, "one class only"),
        ({"train": "few"}, "'b' has 2, but 3 are needed"),
        ({"test": "images"}, "counted twice"),
        ({"test": "images/cat"}, "counted twice"),
        ({"test": "other"}, r"class folder 'cats' in .*other is not among the 2.*did you mean cat\?"),
        ({"train": "flat"}, "lies beside the class folders"),
    ],
)
def test_unusable_folders_are_named(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    fill(tmp_path / "images", {"cat": 5, "dog": 5})
    fill(tmp_path / "other", {"cats": 2}, 100)
    fill(tmp_path / "gap", {"a": 5, "b": 0})
    fill(tmp_path / "few", {"a": 5, "b": 2})
    fill(tmp_path / "single", {"a": 5})
    fill(tmp_path / "flat", {"a": 5, "b": 5})
    (tmp_path / "flat/0.png").write_bytes(png(0))
    (tmp_path / "hollow").mkdir()
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=said):
        folder(tmp_path, **options)


def odd_folder(tmp_path: Path) -> Path:
    root = fill(tmp_path / "images", {"cat": 20, "dog": 20})
    outside = fill(tmp_path / "outside", {"x": 1}, 500) / "x"
    cat = root / "cat"
    (cat / "outside.png").symlink_to(outside / "0.png")
    (cat / "folder").symlink_to(outside)
    (cat / "up").symlink_to(root)
    (cat / "loop.png").symlink_to("loop.png")
    (cat / "dangling.png").symlink_to("absent.png")
    (cat / "inside.png").symlink_to("../dog/3.png")
    (root / "linked-class").symlink_to(fill(tmp_path / "elsewhere", {"y": 5}, 700) / "y")
    (cat / "zero.png").touch()
    (cat / "cut.png").write_bytes(png(77)[:-30])
    (cat / "notes.txt").write_text("not an image")
    os.mkfifo(cat / "pipe.png")
    (Path(os.fsdecode(os.fsencode(cat) + b"/\xff.png"))).write_bytes(png(600))
    return root


def test_odd_entries_are_skipped_with_their_reasons(tmp_path: Path) -> None:
    odd_folder(tmp_path)
    with pytest.raises(DataError, match=r"images/.*: the image .*bad_images: skip"):
        folder(tmp_path)
    indexes = folder(tmp_path, bad_images="skip", duplicates="allow")
    reasons = {item["id"]: item["reason"] for item in read_json(tmp_path / "out/index/summary.json")["skipped"]}
    expected = {
        "cat/up": "link to a folder that it lies in",
        "cat/loop.png": "leads nowhere or to itself",
        "cat/dangling.png": "leads nowhere",
        "cat/zero.png": "empty",
        "cat/cut.png": "PNG",
        "cat/notes.txt": "none of the formats",
        "cat/pipe.png": "regular file",
        "cat/\\udcff.png": "not UTF-8",
    }
    assert reasons.keys() == expected.keys()
    for name, words in expected.items():
        assert words in reasons[name]
        assert str(tmp_path) not in reasons[name]
    names = {name for index in indexes.values() for name in index.ids}
    assert len(names) == 48
    assert {"cat/inside.png", "cat/outside.png", "cat/folder/0.png", "linked-class/4.png"} <= names


def test_class_folders_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"cat": 5})
    fill(Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/\xe9t\xe9")), {"inner": 0})
    with pytest.raises(DataError, match="not UTF-8: rename it"):
        folder(tmp_path)


def test_one_name_in_two_unicode_forms_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "images", {"caf\u00e9": 4, "cafe\u0301": 4})
    with pytest.raises(DataError, match="Unicode forms"):
        folder(tmp_path)


def test_a_named_pipe_never_blocks_and_unreadable_folders_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", {"cat": 5, "dog": 5})
    os.mkfifo(root / "cat" / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        folder(tmp_path, validation_fraction=0.01, test_fraction=0.01)
    if os.geteuid() != 0:
        (root / "cat").chmod(0)
        try:
            with pytest.raises(DataError, match="permission denied"):
                folder(tmp_path)
        finally:
            (root / "cat").chmod(0o755)


def test_class_folders_and_images_may_be_links_as_dvc_and_ln_make_them(tmp_path: Path) -> None:
    full = fill(tmp_path / "full", {"cat": 10, "cow": 10, "dog": 10, "eel": 10})
    plain = folder(tmp_path, train="full")
    (tmp_path / "some").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "some" / name).symlink_to(f"../full/{name}")
    assert folder(tmp_path, train="some")["train"].class_names == ["cat", "dog"]
    (tmp_path / "linked-root").symlink_to(full)
    for place in sorted(full.rglob("*.png")):  # the way of `dvc config cache.type symlink`
        kept = tmp_path / "cache/files/md5" / f"{place.parent.name}{place.name}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(place.read_bytes())
        link = tmp_path / "dvc" / place.parent.name / place.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(kept.resolve())
    (tmp_path / "hard").mkdir()
    for place in sorted(full.rglob("*.png")):
        (tmp_path / "hard" / place.parent.name).mkdir(exist_ok=True)
        os.link(place, tmp_path / "hard" / place.parent.name / place.name)
    for way in ("linked-root", "dvc", "hard"):
        for store in ("bytes", "paths"):
            found = (
                folder(tmp_path, train=way, store=store)
                if store == "bytes"
                else folder(tmp_path, train=str(tmp_path / way), store=store)
            )
            for split, index in found.items():
                assert index.ids == plain[split].ids
                assert [index.encoded(row) for row in range(len(index))] == [
                    plain[split].encoded(row) for row in range(len(index))
                ]


def test_links_that_lead_back_end_and_are_named(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", {"cat": 10, "dog": 10})
    (root / "cat/one").mkdir()
    (root / "cat/one/up").symlink_to("..")
    (root / "cat/one/top").symlink_to(root)
    (root / "dog/a").mkdir()
    (root / "dog/b").mkdir()
    (root / "dog/a/b").symlink_to("../b")
    (root / "dog/b/a").symlink_to("../a")
    (root / "dog/a/self").symlink_to("self")
    folder(tmp_path, bad_images="skip")
    reasons = {item["id"]: item["reason"] for item in read_json(tmp_path / "out/index/summary.json")["skipped"]}
    assert reasons.keys() >= {"cat/one/up", "cat/one/top", "dog/a/self"}
    assert reasons["cat/one/up"] == reasons["cat/one/top"] == "is a link to a folder that it lies in"
    assert set(reasons) - {"cat/one/up", "cat/one/top", "dog/a/self"} == {"dog/a/b", "dog/b/a"}


def test_one_folder_under_two_class_names_and_one_image_in_two_splits_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", {"cat": 10, "dog": 10})
    (root / "hound").symlink_to("dog")
    with pytest.raises(DataError, match="'dog' and 'hound' are one and the same folder"):
        folder(tmp_path)
    (root / "hound").unlink()
    held = tmp_path / "held"
    for name in ("cat", "dog"):
        (held / name).mkdir(parents=True)
        (held / name / "x.png").symlink_to(root / name / "3.png")
    with pytest.raises(DataError, match="duplicates"):
        folder(tmp_path, test="held")
