"""Folders that name classes tell how good a classifier is; others tell nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from clpdd.cli.main import main
from clpdd.probe.confusion import class_of, confusion_in_words
from tests.photos import QUICK, draw_photos


def test_the_nearest_folder_below_what_was_named_says_the_class(tmp_path: Path) -> None:
    root = tmp_path / "red" / "photos"  # a user may be called like a class
    (root / "blue" / "red" / "deep").mkdir(parents=True)
    names = ["red", "blue"]
    assert class_of(root / "blue" / "x.png", [root], names) == "blue"
    assert class_of(root / "blue" / "red" / "deep" / "x.png", [root], names) == "red"
    assert class_of(root / "blue" / "x.png", [root / "blue"], names) == "blue"
    assert class_of(root / "x.png", [root], names) is None
    assert class_of(root / "blue" / "x.png", [root / "blue" / "x.png"], names) is None  # a file, not a folder


def test_few_classes_are_a_table_of_counts() -> None:
    pairs = [("a", "a"), ("a", "a"), ("a", "bee"), ("bee", "bee")]
    assert confusion_in_words(pairs, 2, ["a", "bee", "unseen"]).splitlines() == [
        "accuracy: 3 of 4 images in folders named after a class (75.0 %); 2 others lie in no such folder; "
        "images that the set was distilled from count too, if they are among these",
        "true \\ taken for  a  bee",
        "a                 2    1",
        "bee               0    1",
    ]


def test_many_classes_are_a_list_of_mistakes() -> None:
    names = [f"c{i}" for i in range(20)]
    pairs = [("c1", "c1"), *[("c2", "c3")] * 2, ("c4", "c5")]
    assert confusion_in_words(pairs, 0, names).splitlines()[1:] == ["  c2 taken for c3: 2", "  c4 taken for c5: 1"]


def test_predict_says_accuracy_of_class_folders_behind_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    (tmp_path / "quick.yaml").write_text(QUICK)
    assert main(["run", "photos", "--params", "quick.yaml"]) == 0
    made = ["probe", "data/distilled/clpdd_resnet14/clp", "--protocol", "closed_form", "--out", "p.safetensors"]
    assert main(made) == 0
    caplog.clear()
    assert main(["predict", "p.safetensors", "photos"]) == 0
    assert "accuracy: 20 of 20 images in folders named after a class (100.0 %)" in caplog.text
    caplog.clear()
    assert main(["predict", "p.safetensors", "photos/red/0.png"]) == 0
    assert "accuracy" not in caplog.text
