"""Published datasets whose files say more than their folders: class numbers, groups, tables that were edited."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from clpdd.datasets.index import Index
from clpdd.errors import DataError
from tests.datasets.building import build
from tests.trees import TREES, jpeg


def test_waterbirds_keep_the_group_of_every_image(tmp_path: Path) -> None:
    TREES["waterbirds"](tmp_path / "root", "waterbirds", 3)
    for index in build(tmp_path, "waterbirds").values():
        assert index.groups is not None
        for name, label, group in zip(index.ids, index.labels, index.groups, strict=True):
            bird, place = list(name.split("Bird_")[1])[:2]
            assert index.class_names[label] == ("landbird", "waterbird")[int(bird)]
            assert group == f"{index.class_names[label]} on {('land', 'water')[int(place)]}"


@pytest.mark.parametrize("benchmark", ["o2o-hard", "m2m-easy"])
def test_spawrious_tests_every_dog_on_places_it_was_not_trained_on(tmp_path: Path, benchmark: str) -> None:
    name = f"spawrious-{benchmark}"
    TREES[name](tmp_path / "root", name, 100)
    found = build(tmp_path, name)
    groups = {split: set(index.groups or ()) for split, index in found.items()}
    assert not groups["train"] & groups["test"]
    for index in found.values():
        assert index.groups is not None
        assert all(i.split("/")[2] == index.class_names[k] for i, k in zip(index.ids, index.labels, strict=True))
        assert all(g == f"{i.split('/')[2]} in {i.split('/')[1]}" for i, g in zip(index.ids, index.groups, strict=True))
    training = len(found["train"]) + len(found["validation"])
    assert (training, len(found["test"])) == (800, 800)
    if benchmark == "o2o-hard":  # 97 % and 87 % of a dog's images are on its own place, the rest on the beach
        at_beach = [g for split in ("train", "validation") for g in found[split].groups or () if g.endswith("beach")]
        assert len(at_beach) == 4 * (3 + 13)
        assert "bulldog in jungle" in groups["train"]
        assert "bulldog in mountain" in groups["test"]


def test_cub_names_its_classes_by_their_numbers_whatever_the_order_of_the_lines(tmp_path: Path) -> None:
    home = tmp_path / "root/CUB_200_2011"
    names = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    rows = [(k + 1, f"{names[k % 3]}/{k}.jpg", k % 3 + 1, int(k < 12)) for k in range(18)]
    for _, name, _, _ in rows:
        (home / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "images" / name).write_bytes(jpeg())
    lines = {
        "images": [f"{number} {name}" for number, name, _, _ in rows],
        "image_class_labels": [f"{number} {label}" for number, _, label, _ in rows],
        "train_test_split": [f"{number} {training}" for number, _, _, training in rows],
        "classes": [f"{k + 1} {name}" for k, name in enumerate(names)],
    }

    def written(**changed: list[str]) -> dict[str, Index]:
        for file, held in (lines | changed).items():
            (home / f"{file}.txt").write_text("\n".join(held) + "\n")
        return build(tmp_path, "cub200", duplicates="allow")

    for order in (lines["classes"], lines["classes"][::-1]):
        found = written(classes=order)
        assert found["test"].class_names == ["Black footed Albatross", "Laysan Albatross", "Sooty Albatross"]
        for index in found.values():
            assert all(names[label] in i for i, label in zip(index.ids, index.labels, strict=True))
    floats = written(
        image_class_labels=[f"{line}.0" for line in lines["image_class_labels"]],
        train_test_split=[f"{line}.0" for line in lines["train_test_split"]],
    )
    assert len(floats["test"]) == 6
    with pytest.raises(DataError, match="names no class '2'"):
        written(classes=["1 001.a", "3 003.c", "4 004.d"], image_class_labels=[f"{k + 1} 1" for k in range(18)])
    with pytest.raises(DataError, match="gives the number 1 twice"):
        written(classes=[*lines["classes"], "1 001.b"])
    with pytest.raises(DataError, match=r"image 1 .* has the class '9'"):
        written(image_class_labels=["1 9", *lines["image_class_labels"][1:]])
    with pytest.raises(DataError, match=r"image 1 .* the split 'yes'"):
        written(train_test_split=["1 yes", *lines["train_test_split"][1:]])


@pytest.mark.parametrize("write", [lambda x: f"{x}.0", lambda x: f"{x}.00", lambda x: f" {x}"])
def test_waterbirds_may_have_been_through_pandas(tmp_path: Path, write: Callable[[str], str]) -> None:
    TREES["waterbirds"](tmp_path / "root", "waterbirds", 3)
    expected = {split: (x.ids, x.labels.tolist(), x.groups) for split, x in build(tmp_path, "waterbirds").items()}
    path = tmp_path / "root/waterbird_complete95_forest2water2/metadata.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    columns = list(rows[0])
    for row in rows:
        row.update({name: write(row[name]) for name in ("y", "place", "split")})
    path.write_text(
        "\n".join([",".join(["", *columns]), *(",".join([str(k), *row.values()]) for k, row in enumerate(rows))])
    )
    found = {split: (x.ids, x.labels.tolist(), x.groups) for split, x in build(tmp_path, "waterbirds").items()}
    assert found == expected
    for wrong in ("2", "0.5", "-1", "", "true", "1e0"):
        text = path.read_text().splitlines()
        cells = dict(zip(["", *columns], text[1].split(","), strict=True)) | {"y": wrong}
        path.write_text("\n".join([text[0], ",".join(cells.values()), *text[2:]]))
        with pytest.raises(DataError, match="line 2: y and place must be 0 or 1"):
            build(tmp_path, "waterbirds")
