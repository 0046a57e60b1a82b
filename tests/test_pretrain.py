"""Pre-training of a small encoder: what it writes can be distilled with, and what it cannot use it names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clpdd.cli.main import main
from clpdd.encoders.loading import load_encoder
from clpdd.errors import DataError, SettingsError


def _png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """128 tiny pictures of two classes."""
    rows = [_png(100 * (i % 2) + i) for i in range(128)]
    pq.write_table(pa.table({"image": rows, "label": [i % 2 for i in range(128)]}), tmp_path / "images.parquet")
    return tmp_path / "images.parquet"


def test_the_weights_it_writes_load_as_those_of_an_encoder(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "small.safetensors"
    command = ["pretrain", "--images", str(images), "--out", str(out), "--epochs", "1", "--architecture", "resnet10t"]
    assert main(command) == 0
    assert out.with_suffix(".json").is_file()
    assert load_encoder("resnet10t", weights=out, image_size=32, device="cpu").dim == 512


def test_what_it_cannot_use_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, *changes: str) -> str:
        line = ["pretrain", "--images", str(images), "--out", str(tmp_path / "out.safetensors"), *changes]
        assert main(line) == code
        assert not (tmp_path / "out.safetensors").exists()
        return capsys.readouterr().err

    assert "nowhere.parquet" in refused(DataError.exit_code, "--images", "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    assert "text.parquet" in refused(DataError.exit_code, "--images", str(tmp_path / "text.parquet"))
    assert "resnet10t" in refused(SettingsError.exit_code, "--architecture", "resnet10")
    bad = pa.table({"image": [b"no image", b"neither"], "label": [0, 1]})
    pq.write_table(bad, tmp_path / "bad.parquet")
    assert "bad.parquet, row 0" in refused(DataError.exit_code, "--images", str(tmp_path / "bad.parquet"))
