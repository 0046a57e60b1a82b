"""Hostile settings and hostile images, by the hundreds: success or a clear error, never anything else."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clpdd.config.loading import load_settings
from clpdd.config.settings import Settings
from clpdd.errors import SettingsError

from .datasets.test_decode import rgb_or_data_error

SHIPPED = (Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8")
HOSTILE = [
    *("null", "~", "''", "yes", "true", "-1", "0", "1e309", "-.inf", ".nan", "9" * 400, "1e-400", "0x10", "0o17"),
    *(
        "1_000",
        "12:30:45",
        "2024-02-30",
        "!!python/object/apply:os.system ['touch pwned']",
        "!!binary aGk=",
        "!!set {a}",
    ),
    *("&a [*a]", "*nothing", "<<: {a: 1}", "{[1]: 2}", "{{}: 1}", "[[[[[[[[]]]]]]]]", "[" * 3000, "{" * 3000, "- -"),
    *(
        "|",
        ">",
        "'",
        '"\\x"',
        "\t1",
        "@",
        "`",
        "%",
        "\u2028",
        "\ufeff1",
        "../../etc/passwd",
        "\\0",
        "🙂",
        "? a",
        "---",
        "...",
    ),
    *("!!bool x", "!!int ''", "!!float ''", "!!null x", "!!omap x", "!!pairs 1", "!!seq x", "!!map x", "!!str [1]"),
    *("!!float 'x'", "!!int 1.5", "!!timestamp x", "!!merge 1", "=", "<<", "[1, 2", "{a: 1, a: 2}", "1e5", "+1", ".5"),
]


def settings_or_refusal(path: Path, data: bytes) -> bool:
    """Whether ``data`` is taken. Anything but settings or a ``SettingsError`` that names the file is a failure."""
    path.write_bytes(data)
    try:
        settings = load_settings(path)
    except SettingsError as error:
        told = str(error)
    else:
        assert isinstance(settings, Settings)
        assert_finite(settings.model_dump())
        return True
    assert str(path) in told
    return False


def assert_finite(value: Any) -> None:
    if isinstance(value, dict):
        for inner in value.values():
            assert_finite(inner)
    elif isinstance(value, list):
        for inner in value:
            assert_finite(inner)
    else:
        assert not isinstance(value, float) or math.isfinite(value)


def mutated(rng: random.Random) -> bytes:
    """The shipped file with one to four things done to it."""
    data = SHIPPED.encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice((flip, drop, double, swap, poison, poison, poison, insert, indent, cut))(rng, data)
    return data


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def drop(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def double(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)


def swap(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def poison(rng: random.Random, data: bytes) -> bytes:
    """Another value for some key."""
    lines = data.split(b"\n")
    keyed = [i for i, line in enumerate(lines) if b": " in line and not line.startswith(b"#")]
    if keyed:
        i = rng.choice(keyed)
        lines[i] = lines[i].split(b": ")[0] + b": " + rng.choice(HOSTILE).encode()
    return b"\n".join(lines)


def insert(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    junk = rng.choice((rng.choice(HOSTILE).encode(), rng.randbytes(rng.randrange(1, 40)), b"key: 1", b"  x:"))
    lines.insert(rng.randrange(len(lines)), junk)
    return b"\n".join(lines)


def indent(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i] = rng.choice((b"  ", b"\t", b" ")) + lines[i] if rng.random() < 0.7 else lines[i].lstrip()
    return b"\n".join(lines)


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


@pytest.mark.parametrize("seed", range(6))
def test_mutated_settings_files(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    taken = [settings_or_refusal(tmp_path / "params.yaml", mutated(rng)) for _ in range(100)]
    assert 0 < sum(taken) < 100  # the mutations are neither all fatal nor all harmless
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("value", HOSTILE)
def test_each_hostile_value_at_each_kind_of_place(tmp_path: Path, value: str) -> None:
    for text in (f"seed: {value}", f"distill:\n  steps: {value}", f"encoders: [{value}]", f"{value}: 1", value):
        settings_or_refusal(tmp_path / "params.yaml", text.encode())


def test_every_setting_with_every_hostile_value(tmp_path: Path) -> None:
    """Parsed values put in place of each leaf, so that YAML's own refusals do not hide ours."""
    hostile: list[Any] = [None, True, "", "x", -1, 0, 10**30, 1e300, -1e300, float("nan"), float("inf"), [], {}, [None]]
    hostile += [[1, 2, 3], {"a": 1}, "1e999", "nan", b"x", "\0", "9" * 5000]

    def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        if isinstance(value, dict) and value:
            return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
        return [path]

    shipped = yaml.safe_load(SHIPPED)
    tried = 0
    rng = random.Random(0)
    for leaf in leaves(shipped):
        for value in rng.sample(hostile, 5):
            values = yaml.safe_load(SHIPPED)
            section = values
            for key in leaf[:-1]:
                section = section[key]
            section[leaf[-1]] = value
            settings_or_refusal(tmp_path / "params.yaml", yaml.safe_dump(values).encode())
            tried += 1
    assert tried >= 250


# -- images ------------------------------------------------------------------------------------------------------------


def _encoded() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((23, 17))
    variants: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (smooth, "PNG", {}),
        "png-16": (Image.fromarray(rng.integers(0, 65536, (9, 11), dtype=np.uint16)), "PNG", {}),
        "png-la": (smooth.convert("LA"), "PNG", {}),
        "png-text": (smooth.convert("P"), "PNG", {"transparency": 3}),
        "jpeg": (smooth, "JPEG", {"quality": 90}),
        "jpeg-progressive": (smooth, "JPEG", {"progressive": True}),
        "jpeg-cmyk": (smooth.convert("CMYK"), "JPEG", {}),
        "webp": (smooth, "WEBP", {}),
        "webp-lossless": (smooth.convert("RGBA"), "WEBP", {"lossless": True}),
        "gif": (smooth, "GIF", {}),
        "bmp": (smooth, "BMP", {}),
        "bmp-palette": (smooth.convert("P"), "BMP", {}),
        "tiff": (smooth, "TIFF", {}),
        "tiff-lzw": (smooth, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-jpeg": (smooth, "TIFF", {"compression": "jpeg"}),
        "tiff-float": (Image.fromarray(rng.random((9, 11), dtype=np.float32)), "TIFF", {}),
    }
    made = {}
    for name, (image, kind, options) in variants.items():
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        made[name] = stream.getvalue()
    return made


IMAGES = _encoded()


def mutated_image(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped (headers more often), bytes overwritten, moved, repeated or cut, extreme sizes, two files in one."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 15))):
        if not changed:
            break
        at = rng.randrange(min(len(changed), 64)) if rng.random() < 0.5 else rng.randrange(len(changed))
        way = rng.randrange(7)
        if way <= 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            changed[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x4e\x20"))
        elif way == 3:
            del changed[at : at + rng.randrange(1, 30)]
        elif way == 4:
            changed[at:at] = changed[at : at + rng.randrange(1, 30)]
        elif way == 5:
            del changed[at:]
        else:
            other = IMAGES[rng.choice(sorted(IMAGES))]
            changed[at:] = other[min(at, len(other)) :]
    return bytes(changed)


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_mutated_images(name: str) -> None:
    rgb_or_data_error(IMAGES[name])
    rng = random.Random(name)
    for _ in range(70):
        rgb_or_data_error(mutated_image(rng, IMAGES[name]))
