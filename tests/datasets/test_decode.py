"""``decode_image``: every kind of image becomes the RGB it shows, every damaged one a DataError."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from clpdd.datasets.decode import FORMATS, decode_image
from clpdd.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    if kind == "QOI":  # older Pillows read it and do not write it
        return qoi(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decoded(data: bytes, max_pixels: int = 10_000) -> np.ndarray:
    image = decode_image(data, max_pixels, "here.png")
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def qoi(image: Image.Image) -> bytes:
    """Every pixel written out, which the format allows."""
    body = b"".join(b"\xfe" + bytes(pixel) for pixel in np.asarray(image.convert("RGB")).reshape(-1, 3))
    return b"qoif" + struct.pack(">IIBB", *image.size, 3, 0) + body + bytes(7) + b"\x01"


def picture(mode: str = "RGB", size: tuple[int, int] = (9, 6)) -> Image.Image:
    """A smooth picture without symmetry: green grows downwards, red to the right."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 255 // size[0], y * 255 // size[1], np.full_like(x, 40)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


SEEDS = {
    "png": encoded(picture()),
    "png-palette": encoded(picture("P")),
    "png-alpha": encoded(picture("RGBA")),
    "png-16": encoded(Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9) * 999)),
    "jpeg": encoded(picture(), "JPEG"),
    "jpeg-progressive": encoded(picture(), "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    "jpeg-cmyk": encoded(picture("CMYK"), "JPEG"),
    "gif": encoded(picture("P"), "GIF"),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(picture(), "TIFF", compression="tiff_lzw"),
    "webp": encoded(picture(), "WEBP"),
    "ppm": encoded(picture(), "PPM"),
    "jpeg-2000": encoded(picture(), "JPEG2000"),
    "qoi": encoded(picture(), "QOI"),
    "tga": encoded(picture(), "TGA", compression="tga_rle"),
}


def rgb_or_data_error(data: bytes) -> None:
    """The property of every byte string whatever; larger fuzzers call this."""
    try:
        image = decode_image(data, 4096, "fuzzed")
    except DataError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 4096
    assert np.asarray(image).shape == (image.height, image.width, 3)


@st.composite
def damaged_images(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(sorted(SEEDS.values()))))
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, len(data) - 1))
        data[place] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(data)))
    return bytes(data[:cut] if draw(st.booleans()) else data)


@settings(max_examples=150, deadline=None)
@given(damaged_images())
def test_damaged_images_decode_or_raise_data_error(data: bytes) -> None:
    rgb_or_data_error(data)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_raise_data_error(data: bytes) -> None:
    rgb_or_data_error(data)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_proper_prefix_of_a_file_decodes_or_raises_data_error(name: str) -> None:
    for length in range(0, len(SEEDS[name]), max(1, len(SEEDS[name]) // 60)):
        rgb_or_data_error(SEEDS[name][:length])


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG2000", "QOI", "TGA"])
def test_lossless_formats_round_trip(kind: str) -> None:
    np.testing.assert_array_equal(decoded(encoded(picture(), kind)), np.asarray(picture()))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "AVIF"])
def test_lossy_formats_keep_the_picture(kind: str) -> None:
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    large = picture(size=(64, 48))
    difference = np.abs(decoded(encoded(large, kind)).astype(int) - np.asarray(large))
    assert difference.mean() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_show_their_colours(mode: str) -> None:
    image = picture(mode)
    np.testing.assert_array_equal(decoded(encoded(image)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_shows_its_colour() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decoded(encoded(red, "JPEG", quality=95)).astype(int) - RED).max() < 8


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    expected = np.array([[0, 1, 128, 255]], dtype=np.uint8)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decoded(encoded(Image.fromarray(values), kind))[..., 0], expected)


def test_big_endian_and_wide_pgm_is_scaled() -> None:
    data = b"P5 2 1 65535\n" + struct.pack(">HH", 0, 65535)
    np.testing.assert_array_equal(decoded(data)[0, :, 0], [0, 255])


@pytest.mark.parametrize(("top", "expected"), [(1.0, [0, 128, 255]), (255.0, [0, 128, 255])])
def test_float_grey_is_read_in_either_range(top: float, expected: list[int]) -> None:
    values = np.array([[0, 0.501, 1]], dtype=np.float32) * top
    np.testing.assert_array_equal(decoded(encoded(Image.fromarray(values), "TIFF"))[0, :, 0], expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 1000.0])
def test_floats_out_of_range_are_refused(value: float) -> None:
    data = encoded(Image.fromarray(np.array([[0, value]], dtype=np.float32)), "TIFF")
    with pytest.raises(DataError, match="floats"):
        decoded(data)


def test_integers_beyond_sixteen_bits_are_refused() -> None:
    data = encoded(Image.fromarray(np.array([[0, 70_000]], dtype=np.int32)), "TIFF")
    with pytest.raises(DataError, match=r"0 to 70000.*0 to 65535"):
        decoded(data)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (255, 255, 255)), (255, BLUE), (128, (127, 127, 255))])
def test_transparency_lies_over_white(alpha: int, expected: tuple[int, int, int]) -> None:
    data = encoded(Image.new("RGBA", (2, 2), (*BLUE, alpha)))
    assert np.abs(decoded(data).astype(int) - expected).max() <= 1


def test_transparent_palette_entries_and_colour_keys_become_white() -> None:
    indexed = Image.new("P", (2, 1))
    indexed.putpalette([*RED, *BLUE])
    indexed.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decoded(encoded(indexed, transparency=0)), [[(255, 255, 255), BLUE]])
    np.testing.assert_array_equal(decoded(encoded(indexed, transparency=b"\0\xff")), [[(255, 255, 255), BLUE]])
    keyed = encoded(Image.new("RGB", (1, 1), RED), transparency=RED)
    np.testing.assert_array_equal(decoded(keyed), [[(255, 255, 255)]])
    grey = encoded(Image.new("LA", (1, 1), (0, 0)))
    np.testing.assert_array_equal(decoded(grey), [[(255, 255, 255)]])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    """Stored as a camera would for this orientation, the picture comes out upright."""
    upright = picture(size=(64, 48))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if orientation == 1 else upright.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(stored, kind, exif=exif), 10_000, "photo")
    assert image.size == (64, 48)
    assert image.getexif().get(0x0112, 1) == 1
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).mean() < 5


def test_the_smallest_image() -> None:
    assert decoded(encoded(Image.new("L", (1, 1), 7))).tolist() == [[[7, 7, 7]]]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(data)[0, 0], RED)


def test_a_bomb_is_refused_on_its_header_alone() -> None:
    # The pixels are rubbish: an attempt to decode them would fail with other words.
    data = png(20_000, 20_000, b"not a zlib stream")
    with pytest.raises(DataError, match=r"here\.png: the image is 20000 x 20000 pixels.*max_pixels.*50000000"):
        decode_image(data, 50_000_000, "here.png")


def test_the_limit_is_ours_and_exact_beyond_pillow_s_own() -> None:
    assert decoded(encoded(Image.new("L", (10, 10))), max_pixels=100).shape == (10, 10, 3)
    with pytest.raises(DataError, match="max_pixels"):
        decoded(encoded(Image.new("L", (101, 1))), max_pixels=100)
    large = png(13_500, 13_500, b"not a zlib stream")  # twice the pixels that Pillow warns about
    with pytest.raises(DataError, match="cannot be decoded as PNG"):  # allowed by max_pixels, so it was tried
        decode_image(large, 200_000_000, "here.png")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"hello, I am a text file", "none of the formats"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (SEEDS["png"][:60], "PNG"),
        (SEEDS["jpeg"][:-40], "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG header"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "none of the formats"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of the formats"),
        (png(0, 5, zlib.compress(b"")), "here.png"),
    ],
)
def test_what_is_no_image_is_refused_by_name(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        decoded(data)
    assert str(caught.value).startswith("here.png: ")
    assert " at 0x" not in str(caught.value)


def test_formats_that_start_other_programs_stay_shut() -> None:
    assert not {"EPS", "PDF", "WMF", "PSD", "FITS"} & set(FORMATS)


def texts(kept: dict[str, str], icc: int = 0) -> bytes:
    """A PNG of ``picture()`` with compressed texts (``xmp`` as XMP) and a profile of ``icc`` bytes."""
    info = PngImagePlugin.PngInfo()
    for name, text in kept.items():
        info.add_itxt("XML:com.adobe.xmp", text, zip=True) if name == "xmp" else info.add_text(name, text, zip=True)
    return encoded(picture(), pnginfo=info, icc_profile=b"q" * icc)


MIB = 1 << 20
LARGE = {
    "a text of 3 MiB": texts({"note": "x" * 3 * MIB}),
    "XMP of 2 MiB": texts({"xmp": "x" * 2 * MIB}),
    "a profile of 2 MiB": texts({}, icc=2 * MIB),
    "65 texts of 1 MiB": texts({f"k{number}": "y" * MIB for number in range(65)}),
    "all of them": texts({"xmp": "x" * 2 * MIB, "note": "x" * 3 * MIB}, icc=2 * MIB),
}


@pytest.mark.parametrize("name", LARGE)
def test_long_texts_and_profiles_of_a_png_do_not_matter(name: str) -> None:
    np.testing.assert_array_equal(decoded(LARGE[name]), np.asarray(picture()))


@pytest.mark.parametrize("padding", [0, 2 * MIB])
@pytest.mark.parametrize("orientation", [3, 6])
def test_the_orientation_in_xmp_is_applied_however_long_it_is(orientation: int, padding: int) -> None:
    data = texts({"xmp": f'<x tiff:Orientation="{orientation}"/>' + " " * padding})
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
    np.testing.assert_array_equal(decoded(data), np.asarray(picture().transpose(turn)))


def test_a_png_whose_texts_would_fill_the_memory_is_read_without_unpacking_them() -> None:
    bomb = zlib.compress(b"\0" * (200 * MIB), 9)
    body = b"note\0\0" + bomb
    data = (
        SEEDS["png"][:33]
        + chunk(b"zTXt", body)
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
        + SEEDS["png"][33:]
    )
    tracemalloc.start()
    np.testing.assert_array_equal(decoded(data), np.asarray(picture()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * MIB


def test_a_png_with_long_texts_is_still_refused_where_its_pixels_are_damaged_or_too_many() -> None:
    with pytest.raises(DataError, match=r"cannot be decoded as PNG|damaged PNG header"):
        decoded(LARGE["XMP of 2 MiB"][:-40])
    with pytest.raises(DataError, match="max_pixels"):
        decoded(LARGE["XMP of 2 MiB"], max_pixels=50)


def test_tga_is_known_by_its_footer_alone() -> None:
    with pytest.raises(DataError, match=r"none of the formats.*convert it"):
        decoded(SEEDS["tga"][:-26])
