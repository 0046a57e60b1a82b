"""The distilled dataset: what a method makes, what evaluation trains on, and what is handed over."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ..errors import ArtifactError
from ..runtime.notebook import ShownImages
from ..storage.files import explain_os_errors, remove, write_bytes, write_json
from .reading import FORMAT, Described, image_paths, read_set

__all__ = ["DistilledSet", "card", "grid", "parquet_bytes", "png_bytes"]


@dataclass(frozen=True, eq=False, repr=False)
class DistilledSet(ShownImages, Described):
    """Labelled synthetic (or chosen real) images with the record of how they came to be.

    Attributes:
        images: ``(n, 3, s, s)`` uint8; ``n`` is 0 for the method ``full``, which stands for all training images.
        labels: ``(n,)`` int64 in ``[0, C)``.
        class_names: ``C`` names.
        info: JSON values: ``method``, ``encoder`` (``Encoder.describe()``), ``feature_mean`` (``d`` numbers, of the
            real training images), ``settings``, ``fingerprint``, ``dataset``, ``images_per_class``; where they apply
            ``curves`` (``loss``, ``validation_top1``: lists of ``[step, value]``), ``sources`` (ids of the real
            images), ``validation_top1`` (percent), ``kept_step``.
        start: ``(n, 3, s, s)`` uint8 images the optimisation began with, or ``None``.
        soft_labels: ``(n, C)`` float32 probabilities of the classes, on which probes are trained in place of
            ``labels``; ``None``: the labels are hard.
        draw: ``(n,)`` int64: which independent draw of a random method an image belongs to; zeros elsewhere.
        frames: previews ``(h, w, 3)`` uint8 in order of their steps, for the timelapse.
    """

    images: Tensor
    labels: Tensor
    class_names: list[str]
    info: dict[str, Any]
    start: Tensor | None = None
    draw: Tensor | None = None
    frames: list[np.ndarray] = field(default_factory=list)
    soft_labels: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise ArtifactError(
                f"images must be (n, 3, s, s) uint8, got {tuple(self.images.shape)} {self.images.dtype}"
            )
        if self.labels.shape != (n,) or (
            n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.classes
        ):
            raise ArtifactError(f"labels must be ({n},) in [0, {self.classes})")
        soft = self.soft_labels
        if soft is not None and not (
            soft.shape == (n, self.classes)
            and soft.dtype == torch.float32
            and bool((soft >= 0).all() and ((soft.sum(1) - 1).abs() < 1e-3).all())
        ):
            raise ArtifactError(
                f"soft labels must be ({n}, {self.classes}) float32 probabilities, each row summing to 1"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def targets(self) -> Tensor:
        """What probes are trained on: soft labels ``(n, C)`` where there are any, else the labels ``(n,)``."""
        return self.labels if self.soft_labels is None else self.soft_labels

    @property
    def name(self) -> str:
        """What it is called in ``methods``: the method's name, or that of a variant of it."""
        return str(self.info.get("name", self.method))

    @property
    def draws(self) -> list[DistilledSet]:
        """The set's independent draws, each a set of its own (one, unless the method is random).

        Train on one of them: together they are more images per class than the method was given.
        """
        if self.draw is None or not len(self):
            return [self]
        parts = []
        for number in self.draw.unique().tolist():
            rows = self.draw == number
            soft = None if self.soft_labels is None else self.soft_labels[rows]
            images, labels = self.images[rows], self.labels[rows]
            draw = self.draw[rows]
            parts.append(DistilledSet(images, labels, self.class_names, self.info, draw=draw, soft_labels=soft))
        return parts

    def _sheet(self) -> bytes:
        return png_bytes(grid(self.draws[0].images))

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, folder: Path | str) -> Path:
        """Write the set into ``folder`` (made if need be; earlier files of the set are replaced).

        ``data.parquet`` is lossless and opens with ``datasets.load_dataset("parquet", data_files=...)`` as an
        ``Image`` and a ``ClassLabel`` feature. The same set gives the same bytes.
        """
        folder = Path(folder)
        with explain_os_errors("write", folder):
            for name in ("images", "start", "curves"):
                remove(folder / name)
            folder.mkdir(parents=True, exist_ok=True)
        encoded = [png_bytes(image) for image in self.images]
        write_bytes(folder / "data.parquet", parquet_bytes(self, encoded))
        for path, data in zip(self._image_paths(), encoded, strict=True):
            write_bytes(folder / "images" / path, data)
        if self.start is not None:
            for path, image in zip(self._image_paths(), self.start, strict=True):
                write_bytes(folder / "start" / path, png_bytes(image))
        if len(self):
            write_bytes(folder / "preview.png", png_bytes(grid(self.draws[0].images)))
        if self.frames:
            write_bytes(folder / "timelapse.gif", _gif(self.frames))
        for name, points in self.info.get("curves", {}).items():
            rows = [f"step\t{name}", *(f"{step}\t{value!r}" for step, value in points)]
            write_bytes(folder / "curves" / f"{name}.tsv", ("\n".join(rows) + "\n").encode())
        write_bytes(folder / "README.md", card(self).encode())
        write_json(folder / "distilled.json", {"format": FORMAT, "class_names": self.class_names, **self.info})
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> DistilledSet:
        """Read a set back: the same pixels, labels and record. Raises ``ArtifactError`` naming what is wrong."""
        found = read_set(folder)
        tensors = (found.images, found.labels, found.draw, found.start, found.soft_labels)
        images, labels, draw, start, soft = (None if one is None else torch.from_numpy(one) for one in tensors)
        assert images is not None  # of these three only start and soft labels may be missing
        assert labels is not None
        return cls(images, labels, found.class_names, found.info, start=start, draw=draw, soft_labels=soft)

    @property
    def draw_numbers(self) -> list[int]:
        """The numbers of its draws, ascending."""
        return [0] if self.draw is None or not len(self) else [int(number) for number in self.draw.unique()]

    def _image_paths(self) -> list[str]:
        """A path for every image; below ``draw-N`` where there are several draws, which must not get mixed up."""
        draws = [0] * len(self) if self.draw is None else self.draw.tolist()
        return image_paths(self.labels.tolist(), draws, self.class_names)


def png_bytes(image: Tensor | np.ndarray) -> bytes:
    """``(3, h, w)`` tensor or ``(h, w, 3)`` array of uint8 as PNG bytes, the same for the same pixels."""
    array = image.permute(1, 2, 0).contiguous().numpy() if isinstance(image, Tensor) else image
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def grid(images: Tensor, columns: int | None = None, gap: int = 2, limit: int = 400) -> np.ndarray:
    """The first ``limit`` images ``(n, 3, s, s)`` uint8 side by side as one ``(h, w, 3)`` array on white."""
    images = images[:limit]
    n, _, height, width = images.shape
    columns = columns or min(n, 10 if n <= 100 else 20)
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _gif(frames: list[np.ndarray]) -> bytes:
    pictures = [Image.fromarray(frame) for frame in frames]
    durations = [200] * (len(pictures) - 1) + [2000]  # milliseconds; the result stays on a while
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return buffer.getvalue()


def parquet_bytes(data: DistilledSet, encoded: list[bytes] | None = None) -> bytes:
    """``data.parquet`` of a set, whose images may be at hand as PNG."""
    encoded = encoded or [png_bytes(image) for image in data.images]
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, Any] = {
        "image": {"_type": "Image"},
        "label": {"names": data.class_names, "_type": "ClassLabel"},
        "draw": {"dtype": "int64", "_type": "Value"},
    }
    draw = data.draw if data.draw is not None else torch.zeros(len(data), dtype=torch.int64)
    columns = [("image", image), ("label", pa.int64()), ("draw", pa.int64())]
    if data.soft_labels is not None:
        columns.append(("soft_label", pa.list_(pa.float32(), data.classes)))
        features["soft_label"] = {
            "feature": {"dtype": "float32", "_type": "Value"},
            "length": data.classes,
            "_type": "Sequence",
        }
    schema = pa.schema(
        columns,
        metadata={"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)},
    )
    rows = {
        "image": [{"bytes": png, "path": path} for png, path in zip(encoded, data._image_paths(), strict=True)],
        "label": data.labels.tolist(),
        "draw": draw.tolist(),
    }
    if data.soft_labels is not None:
        rows["soft_label"] = data.soft_labels.tolist()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(rows, schema=schema), sink, compression="none")
    return bytes(sink.getvalue().to_pybytes())


def card(data: DistilledSet) -> str:
    """The dataset card."""
    info = data.info
    encoder = info.get("encoder", {})
    settings = json.dumps(info.get("settings", {}), sort_keys=True, indent=2)
    accuracy = info.get("validation_top1")
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files: data.parquet",
        "task_categories:",
        "- image-classification",
        "tags:",
        "- dataset-distillation",
        "---",
        f"# {info.get('dataset', 'dataset')}, distilled by {data.method}",
        "",
        f"{len(data)} images, {data.classes} classes, made for a linear probe over the frozen encoder "
        f"`{encoder.get('name', '?')}` (input {encoder.get('size', '?')} pixels, {encoder.get('dim', '?')} features, "
        f"weights `{str(encoder.get('digest', '?'))[:12]}`).",
        "",
    ]
    several = len(data.draw_numbers) > 1
    if several:
        lines += [
            f"These are {len(data.draw_numbers)} independent draws of {len(data.draws[0])} images each, told apart by "
            "the column `draw` and the folders `images/draw-N`: train on one of them, never on all together.",
            "",
        ]
    elif info.get("draws", 1) > 1:
        lines += [
            f"This is draw {data.draw_numbers[0]} of {info['draws']} independent ones, 0 to {info['draws'] - 1}.",
            "",
        ]
    if accuracy is not None:
        lines += [f"Top-1 of the closed-form probe on validation images: {accuracy:.2f} %.", ""]
    if data.soft_labels is not None:
        lines += [
            "Probes are trained on `soft_label`, probabilities of the classes; `label` is the likeliest at first.",
            "",
        ]
    lines += [
        "## Use",
        "```python",
        "from datasets import load_dataset",
        'data = load_dataset("parquet", data_files="data.parquet", split="train")',
        *(['data = data.filter(lambda row: row["draw"] == 0)'] if several else []),
        "```",
        "",
        "## Licence",
        "The images derive from the source dataset: its licence and terms of use apply to them.",
        "",
        "## Settings",
        "```json",
        settings,
        "```",
        "",
    ]
    return "\n".join(lines)
