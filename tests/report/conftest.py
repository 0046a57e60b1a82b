"""Data folders that are reported on, and a page taken apart."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from clpdd.config.loading import parse_settings
from clpdd.config.settings import Settings
from clpdd.storage.files import read_json, write_json
from clpdd.storage.layout import Layout

from .artifacts import DIGITS, HOSTILE, write_artifacts


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Settings]:
    """One encoder, ten digits, one image per class."""
    settings = parse_settings({})
    return write_artifacts(tmp_path_factory.mktemp("plain"), settings, DIGITS), settings


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Settings]:
    """Two encoders, one of a long name, several images per class, and class names that try to be markup."""
    values = {
        "encoders": ["clpdd_resnet14", "vit_base_patch14_reg4_dinov2.lvd142m"],
        "distill": {"images_per_class": 3},
        "report": {"max_classes": 4, "images_per_row": 3},
    }
    settings = parse_settings(values)
    return write_artifacts(tmp_path_factory.mktemp("hostile"), settings, HOSTILE, side=16, clocks=False), settings


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Settings]:
    """Six encoders, the last of which joins the second and the third."""
    names = ["clpdd_resnet14", "clip", "siglip2", "vit_base_patch14_reg4_dinov2.lvd142m", "mae", "both"]
    joint = {"both": {"members": {"clip": 1.0, "siglip2": 2.0}}}
    settings = parse_settings({"encoders": names, "encoder_options": joint})
    layout = write_artifacts(tmp_path_factory.mktemp("many"), settings, DIGITS[:3], side=16)
    file = layout.kernels("both") / "kernels.json"
    record = read_json(file)
    write_json(file, record | {"encoder": record["encoder"] | {"members": [{"name": "clip"}, {"name": "siglip2"}]}})
    return layout, settings


class Page(HTMLParser):
    """Tags with their attributes, text outside ``style``, and every address the page refers to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]
