"""Tensors into a safetensors file as a stream: no copy of them, and the digest of the file from the same pass."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import write_stream

__all__ = ["write_tensors"]

_BLOCK = 2**23  # bytes handed on at once

_KINDS = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the library's order: wide ones first, so that all are aligned without gaps."""

_PLACES = {kind: place for place, kind in enumerate(_KINDS)}


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, whole or not at all, in memory that does not grow with the tensors.

    The bytes are those of ``safetensors.torch.save``.

    Args:
        tensors: contiguous, on the CPU, of floats, integers or booleans.

    Returns:
        Hex SHA-256 of the file.
    """
    return write_stream(path, _parts(tensors))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    ordered = sorted(tensors.items(), key=lambda item: (_PLACES[item[1].dtype], item[0]))
    header, place = {}, 0
    for name, tensor in ordered:
        end = place + tensor.nbytes
        header[name] = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        data = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        for first in range(0, len(data), _BLOCK):
            yield data[first : first + _BLOCK]
