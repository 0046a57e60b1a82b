"""``decode_reduced``: large JPEG images at a fraction of their sides, every other image as it is."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from clpdd.datasets.decode import decode_image, decode_reduced
from clpdd.encoders.preprocessing import Preprocess
from clpdd.errors import DataError

from .test_decode import SEEDS, encoded, picture

PREPROCESS = Preprocess(resize=64, crop=64, interpolation="bicubic")
LIMIT = 2_000_000


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Edges and shades without symmetry, at every scale."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3))
    for side in (2, 5, 11, 23, 47):
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=float)
    return Image.fromarray((image / 5).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, orientation: int = 1, /, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=90, exif=exif, **options)


def apart(data: bytes, preprocess: Preprocess = PREPROCESS) -> float:
    """Mean difference of the encoder's pixels after decoding at reduced scale and in full, in levels of 255."""
    image, box = decode_reduced(data, LIMIT, "here.jpg", preprocess.least)
    whole = decode_image(data, LIMIT, "here.jpg")
    assert image.width * 2 <= whole.width + 1
    return float(np.abs(preprocess(image, box).astype(float) - preprocess(whole)).mean())


@pytest.mark.parametrize(
    ("least", "size"),
    [
        ((75, 100), (100, 75)),
        ((75, 101), (200, 150)),  # an eighth would leave one column too few
        ((76, 100), (200, 150)),
        ((150, 200), (200, 150)),
        ((151, 1), (400, 300)),
        ((300, 400), (400, 300)),
        ((301, 1), (800, 600)),
        ((1000, 1000), (800, 600)),
        ((1, 1), (100, 75)),  # libjpeg knows no stronger reduction
    ],
)
def test_the_strongest_reduction_is_taken_that_leaves_enough(least: tuple[int, int], size: tuple[int, int]) -> None:
    asked = []

    def enough(height: int, width: int) -> tuple[int, int]:
        asked.append((height, width))
        return least

    image, box = decode_reduced(jpeg(photograph(800, 600)), LIMIT, "here.jpg", enough)
    assert asked == [(600, 800)]
    assert image.size == size
    assert box == (0, 0, *size)
    assert (image.mode, image.info) == ("RGB", {})


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_small_images_and_other_formats_are_decoded_as_they_are(name: str) -> None:
    whole = decode_image(SEEDS[name], LIMIT, name)
    image, box = decode_reduced(SEEDS[name], LIMIT, name, lambda height, width: (height, width))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(whole))
    assert box == (0, 0, *whole.size)
    if "jpeg" not in name or name == "jpeg-2000":
        assert decode_reduced(SEEDS[name], LIMIT, name, lambda *_: (1, 1))[0].size == whole.size


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(803, 597), (530, 1007)])
def test_reduced_images_lie_upright_where_whole_ones_lie(orientation: int, size: tuple[int, int]) -> None:
    assert apart(jpeg(photograph(*size), orientation)) < 0.4


@pytest.mark.parametrize("turned", [1, 6])
def test_what_is_asked_for_and_returned_is_upright(turned: int) -> None:
    def enough(height: int, width: int) -> tuple[int, int]:
        assert (height, width) == ((600, 800) if turned == 1 else (800, 600))
        return (100, 10) if turned == 1 else (10, 100)

    image, _ = decode_reduced(jpeg(photograph(800, 600), turned), LIMIT, "here.jpg", enough)
    assert image.size == ((200, 150) if turned == 1 else (150, 200))


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0})],
)
def test_every_kind_of_jpeg_keeps_its_picture(mode: str, options: dict[str, object]) -> None:
    assert apart(jpeg(photograph(801, 603, mode), **options)) < 0.4


def test_the_first_of_several_pictures_in_a_jpeg_is_reduced() -> None:
    stream = io.BytesIO()
    others = [picture(size=(300, 200))]
    photograph(801, 603).save(stream, "MPO", save_all=True, append_images=others, quality=90)
    assert apart(stream.getvalue()) < 0.4


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize=73, crop=64, interpolation="bilinear"),
        Preprocess(resize=64, crop=64, interpolation="bicubic", squash=True),
        Preprocess(resize=(48, 80), crop=(40, 72), interpolation="bicubic"),
        Preprocess(resize=64, crop=64, interpolation="lanczos", border=(9, 9, 9)),
    ],
)
def test_twice_what_the_encoder_takes_is_left(preprocess: Preprocess) -> None:
    data = jpeg(photograph(1003, 797))
    image, box = decode_reduced(data, LIMIT, "here.jpg", preprocess.least)
    least = preprocess.least(797, 1003)
    resized = preprocess._resized(797, 1003)
    assert least == (2 * resized[0], 2 * resized[1])
    assert image.height >= least[0]
    assert image.width >= least[1]
    assert preprocess._resized(box[3] - box[1], box[2] - box[0]) == resized
    assert apart(data, preprocess) < 0.4


def test_the_limit_of_pixels_is_that_of_the_whole_image() -> None:
    data = jpeg(photograph(800, 600))
    with pytest.raises(DataError, match=r"here\.jpg.*800 x 600 pixels, more than"):
        decode_reduced(data, 479_999, "here.jpg", lambda *_: (1, 1))
    assert decode_reduced(data, 480_000, "here.jpg", lambda *_: (1, 1))[0].size == (100, 75)


def test_a_cut_file_is_refused_by_name() -> None:
    data = jpeg(photograph(800, 600))
    with pytest.raises(DataError, match=r"here\.jpg: the image cannot be decoded as JPEG"):
        decode_reduced(data[: len(data) // 2], LIMIT, "here.jpg", lambda *_: (1, 1))


@pytest.mark.parametrize("border", [None, (0, 0, 0)])
def test_a_hair_is_refused_with_its_own_sides(border: tuple[int, int, int] | None) -> None:
    preprocess = Preprocess(resize=224, crop=224, interpolation="bicubic", border=border)
    assert preprocess.least(1, 1_000_000) == (1, 1_000_000)
    image, box = decode_reduced(jpeg(Image.new("RGB", (60_000, 8))), LIMIT, "here.jpg", preprocess.least)
    tall = Preprocess(resize=10_000, crop=224, interpolation="bicubic", border=border)
    with pytest.raises(DataError, match="60000 x 8 pixels, too elongated"):
        (preprocess if border else tall)(image, box)
