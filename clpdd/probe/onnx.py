"""A classifier as an ONNX model: the probe alone, or images to probabilities with the encoder in front of it."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..encoders.encoder import Encoder
from ..errors import NumericalError, ResourceError, SettingsError
from ..storage.files import explain_os_errors, write_bytes
from .classifier import Classifier

__all__ = ["require_onnx", "write_onnx"]

_NEEDED = ("onnx", "onnxruntime", "onnxscript")
_TOLERANCE = 1e-3  # of probabilities: float32 in another order of sums
_LARGEST = 2**31 - 1  # bytes, of one ONNX file
_CHECKED = 3  # images, another number than the model is traced with


class _Head(nn.Module):
    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.linear = nn.Linear(classifier.weight.shape[1], classifier.weight.shape[0])
        with torch.no_grad():
            self.linear.weight.copy_(classifier.weight)
            self.linear.bias.copy_(classifier.bias)

    def forward(self, features: Tensor) -> Tensor:
        return torch.softmax(self.linear(features), 1)


class _Whole(nn.Module):
    def __init__(self, encoder: Encoder, head: _Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(images))
        return found


def require_onnx() -> None:
    """Raise ``SettingsError`` where a package that ONNX takes is not installed: before any work."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SettingsError(
            f"ONNX needs packages that are not installed ({', '.join(missing)}): pip install {' '.join(missing)}, or "
            f"name the extra when installing, clpdd[onnx]. The classifier itself is a safetensors file with weight "
            f"and bias, which needs none of them"
        )


def write_onnx(classifier: Classifier, target: Path | str, encoder: Encoder | None = None) -> float:
    """Write one ``.onnx`` file, run it by onnxruntime, and compare: what does not agree is not written.

    Without an encoder the model takes ``features (b, d)``, with one ``images (b, 3, s, s)`` in [0, 1], ``s`` being
    the encoder's input size; both float32 with any ``b``. It gives ``probabilities (b, C)`` float32, calibrated as
    those of ``Classifier``. The metadata hold ``class_names`` and ``encoder`` (its description, and how a picture is
    resized and cropped: ``resize``, ``size``, ``interpolation``, and what of it the model does: ``input``) as JSON.

    Args:
        target: replaced where it exists.
        encoder: the one that the classifier was trained on, to go in front of the probe.

    Returns:
        The largest difference of a probability between torch and onnxruntime that was seen.

    Raises:
        ArtifactError: the encoder is not the classifier's.
        SettingsError: a package is missing, or the encoder holds what ONNX has no word for.
        NumericalError: onnxruntime finds other probabilities than torch.
        ResourceError: the model is larger than the 2 GiB that one file holds, or cannot be written.
    """
    require_onnx()
    head = _Head(classifier).eval()
    model: nn.Module = head
    name = "features"
    shape: tuple[int, ...] = (classifier.weight.shape[1],)
    facts: dict[str, Any] = dict(classifier.encoder)
    if encoder is not None:
        classifier.check(encoder)
        own = copy.deepcopy(encoder).cpu()
        model, name, shape = _Whole(own, head).eval(), "images", (3, own.size, own.size)
        facts |= {"resize": own.resized, "input": "pixels from 0 to 1, RGB; the model normalises them itself"}
    held = sum(value.numel() * value.element_size() for value in (*model.parameters(), *model.buffers()))
    if held > _LARGEST:
        raise ResourceError(f"the weights take {held / 2**30:.1f} GiB, and an ONNX file holds 2: write the probe alone")
    data = _converted(model, name, shape, {"class_names": classifier.class_names, "encoder": facts})
    difference = _compared(model, data, name, shape)
    with explain_os_errors("write", target):
        write_bytes(target, data)
    return difference


@torch.no_grad()
def _converted(model: nn.Module, name: str, shape: tuple[int, ...], facts: dict[str, Any]) -> bytes:
    """The model as the bytes of an ONNX file."""
    import onnx  # here: of an extra

    example = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                (example,),
                input_names=[name],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter has a kind for each of its steps
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        who, remedy = ("encoder", "write the probe alone") if name == "images" else ("probe", "install a newer torch")
        if torch.__version__.startswith("2.8.") and not metadata.version("onnx-ir").startswith("0.1."):
            remedy = "beside torch 2.8 install an older onnx-ir, pip install 'onnx-ir<0.2', or a newer torch"
        raise SettingsError(f"the {who} cannot be written as ONNX ({said}): {remedy}") from error
    if program is None:
        raise SettingsError("this release of torch writes no ONNX program: install torch 2.8 or newer")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()})
    stream = io.BytesIO()
    onnx.save_model(proto, stream)
    return stream.getvalue()


@torch.no_grad()
def _compared(model: nn.Module, data: bytes, name: str, shape: tuple[int, ...]) -> float:
    """The largest difference between what torch and onnxruntime find. Raises ``NumericalError`` for a large one."""
    import onnxruntime  # here: of an extra

    given = torch.rand(_CHECKED, *shape, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], {name: given.numpy()})
    difference = float(np.abs(np.asarray(found) - model(given).numpy()).max())
    if not difference <= _TOLERANCE:
        raise NumericalError(
            f"onnxruntime finds probabilities that differ from torch's by {difference:.2g}, more than {_TOLERANCE:g}: "
            f"nothing was written; try another release of onnxruntime or torch"
        )
    return difference


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's log of its own steps, which goes to standard output and to warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        sys.stdout.flush()
