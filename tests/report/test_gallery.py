"""Images of very many classes: every one is on the page, in a few pictures that stay closed until they are opened."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clpdd.config.loading import parse_settings
from clpdd.distilled.dataset import DistilledSet
from clpdd.distilled.reading import StoredSet
from clpdd.report.gallery import gallery
from clpdd.report.pictures import SHEET
from clpdd.stages.report import write_report
from clpdd.storage.layout import Layout
from tests.browser import emulate

from .artifacts import write_artifacts
from .conftest import Page

FACTS = {"headline": {"method": "clp", "synthetic": True}}


def coloured(classes: int, side: int = 8) -> StoredSet:
    """An image of one colour for each class, and noise in it."""
    rng = np.random.default_rng(0)
    colours = rng.integers(20, 230, (classes, 3, 1, 1)) + rng.integers(0, 20, (classes, 3, side, side))
    names = [f"class {c}" for c in range(classes)]
    labels = np.arange(classes)
    return StoredSet(colours.astype(np.uint8), labels, np.zeros_like(labels), names, {"method": "clp"})


def made(data: StoredSet, tmp_path: Path) -> dict[str, Any]:
    settings = parse_settings({"methods": ["clp"]})
    return gallery(FACTS, {("clpdd_resnet14", "clp"): data}, "clpdd_resnet14", Layout(tmp_path), settings)


def test_every_one_of_ten_thousand_classes_is_on_a_page_of_few_pictures(tmp_path: Path) -> None:
    found = made(coloured(10_000), tmp_path)
    names = [c["name"] for chunk in found["chunks"] for c in chunk]
    names += [name for page in found["pages"] for name in page["names"]]
    assert names == [f"class {c}" for c in range(10_000)]
    assert (found["others"], found["left_out"], found["pictures"]) == (9980, 0, [])
    assert len(found["pages"]) == -(-9980 // SHEET)
    assert found["pages"][1]["numbers"] == (21 + SHEET, 20 + 2 * SHEET)
    assert sum(len(page["sheet"].uri) for page in found["pages"]) < 1_200_000


def test_a_thousand_classes_have_a_lossless_picture_each(tmp_path: Path) -> None:
    found = made(coloured(1000), tmp_path)
    assert len(found["pictures"]) == 980
    assert found["pages"] == []
    assert all(line["picture"].uri.startswith("data:image/png") for line in found["pictures"])


def test_a_class_without_an_image_takes_no_place(tmp_path: Path) -> None:
    data = coloured(1100)
    kept = data.labels != 700
    fewer = StoredSet(data.images[kept], data.labels[kept], data.draw[kept], data.class_names, data.info)
    found = made(fewer, tmp_path)
    assert found["others"] == 1079
    assert "class 700" not in [name for page in found["pages"] for name in page["names"]]
    assert [page["numbers"] for page in found["pages"]] == [(21, 520), (521, 1021), (1022, 1100)]


def test_every_name_shows_its_own_image_when_its_page_is_opened(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clpdd.report.gallery._BY_THEMSELVES", 10)
    settings = parse_settings({"methods": ["clp"], "report": {"max_classes": 4}})
    names = [f"class <{c}>" for c in range(64)]
    layout = write_artifacts(tmp_path, settings, names, side=16)
    data, folder = coloured(64, 16), layout.distilled("clpdd_resnet14", "clp")
    images = torch.from_numpy(data.images)
    dataclasses.replace(DistilledSet.load(folder), images=images).save(folder)
    html = write_report(layout, settings)["report.html"]
    assert sum(name in Page(html.read_text()).text for name in names) == 64
    emulate(browser, 1280)
    browser.get(html.as_uri())
    items = browser.find_elements("css selector", ".sheet li")
    assert len(items) == 60
    assert not items[0].is_displayed()
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    for k in (0, 1, 19, 20, 41, 59):
        picture = np.asarray(Image.open(io.BytesIO(items[k].screenshot_as_png)).convert("RGB"), dtype=float)
        middle = picture[10 : picture.shape[1] - 10, 10:-10].mean((0, 1))
        assert np.abs(middle - data.images[4 + k].mean((1, 2))).max() < 6
        assert re.search(rf"class <{4 + k}>$", items[k].text)
