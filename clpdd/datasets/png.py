"""PNG files without the texts and profiles that Pillow bounds: they say nothing of the pixels.

Pillow refuses a file whose compressed texts or colour profile are longer than 1 MiB, or all texts together than 64 MiB,
since they might be decompression bombs. Here they are left out instead, unread.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

__all__ = ["SIGNATURE", "without_texts"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_XMP = b"XML:com.adobe.xmp"
_XMP_BYTES = 16 << 20  # of XMP looked through for an orientation
_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def without_texts(data: bytes) -> bytes:
    """A PNG file without texts and colour profile; of XMP its orientation stays, which turns the image.

    Chunks are passed over by their lengths; nothing is decompressed but XMP, up to 16 MiB.
    """
    kept = [SIGNATURE]
    for kind, body, whole in _chunks(data):
        if kind not in _TEXTS:
            kept.append(whole)
        elif kind == b"iTXt" and body.startswith(_XMP + b"\0") and (found := _ORIENTATION.search(_text(body))):
            kept.append(_chunk(b"iTXt", _XMP + b"\0\0\0\0\0" + b'tiff:Orientation="' + found[1] + b'"'))
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, body and bytes of every chunk; a last one that is cut short comes as it is."""
    place = len(SIGNATURE)
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 12 + length
        yield data[place + 4 : place + 8], data[place + 8 : end - 4], data[place:end]
        place = end


def _text(body: bytes) -> bytes:
    """The text of an ``iTXt`` chunk, or its beginning; nothing where it is damaged."""
    compressed, rest = body[len(_XMP) + 1 : len(_XMP) + 2] == b"\1", body[len(_XMP) + 3 :]
    text = rest.split(b"\0", 2)[-1]  # behind the language and the translated keyword
    if not compressed:
        return text[:_XMP_BYTES]
    try:
        return zlib.decompressobj().decompress(text, _XMP_BYTES)
    except zlib.error:
        return b""


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
