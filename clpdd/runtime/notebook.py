"""How things show themselves in a notebook: HTML for rich views, and libraries that are optional there."""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ..errors import ResourceError

__all__ = ["ShownImages", "figure_of", "html_table", "optional", "picture"]

_MOST_SHOWN = 100


def optional(name: str, what_for: str) -> Any:
    """A library that is not required. Raises ``ResourceError`` that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ResourceError(f"{what_for} needs {package}, which is not installed: pip install {package}") from error


def figure_of(width: float, height: float) -> Any:
    """An empty ``matplotlib`` figure, in inches, that a notebook shows without ``%matplotlib inline`` or pyplot.

    Raises ``ResourceError`` where matplotlib is not installed.
    """
    kind = optional("matplotlib.figure", "plot").Figure

    class Figure(kind):  # type: ignore[misc, valid-type]  # the class is known where matplotlib is installed
        def _repr_png_(self) -> bytes:
            drawn = io.BytesIO()
            self.savefig(drawn, format="png", dpi=80, metadata={"Software": None})  # no version: equal bytes
            return drawn.getvalue()

    return Figure(figsize=(width, height), layout="constrained")


def html_table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table of escaped text. Numbers of a column stand flush right, ``None`` is an empty cell."""
    heads = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, float):
        return f'<td style="text-align: right">{value:.2f}</td>'
    return f"<td>{escape(str(value))}</td>"


def picture(png: bytes, words: str) -> str:
    """A PNG within the page, enlarged without smoothing where it is small, and ``words`` below it."""
    data = base64.b64encode(png).decode()
    style = "image-rendering: pixelated; max-width: 100%"
    text = escape(words)
    image = f'<img alt="{text}" style="{style}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


class ShownImages:
    """What a ``DistilledSet`` shows of itself."""

    images: Any
    labels: Any
    class_names: list[str]
    info: dict[str, Any]

    def _sheet(self) -> bytes:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"DistilledSet({self._words()})"

    def _words(self) -> str:
        count, side = len(self.images), self.images.shape[-1]
        what = f"{count} images of {side} pixels" if count else "no images: it stands for all training images"
        made = f"{self.info.get('name', self.info.get('method', 'unknown'))}: {what}, {len(self.class_names)} classes"
        encoder = (self.info.get("encoder") or {}).get("name")
        score = self.info.get("validation_top1")
        made += f", for {encoder}" if encoder else ""
        return made + (f", validation top-1 {score:.1f} %" if score is not None else "")

    def _repr_html_(self) -> str:
        return picture(self._sheet(), self._words()) if len(self.images) else f"<p>{escape(self._words())}</p>"

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """Readings, ``{"loss": [(step, value), ...], "validation_top1": ...}``; empty where images were chosen."""
        return {name: [(step, value) for step, value in points] for name, points in self.info.get("curves", {}).items()}

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, a row for each image: ``image`` (PIL), ``label``, ``class_name``.

        Raises ``ResourceError`` where pandas is not installed.
        """
        pandas, pictures = optional("pandas", "to_pandas"), optional("PIL.Image", "to_pandas")
        labels = self.labels.tolist()
        shown = [pictures.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in self.images]
        names = [self.class_names[label] for label in labels]
        return pandas.DataFrame({"image": shown, "label": labels, "class_name": names})

    def plot(self, columns: int = 10) -> Any:
        """A ``matplotlib`` figure of the first 100 images with their classes.

        Args:
            columns: images in a row, >= 1.

        Raises:
            ResourceError: matplotlib is not installed.
        """
        count = min(len(self.images), _MOST_SHOWN)
        width = max(1, min(columns, count))
        height = max(1, -(-count // width))
        figure = figure_of(1.2 * width, 1.45 * height)
        axes = figure.subplots(height, width, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, image, label in zip(axes, self.images, self.labels.tolist(), strict=False):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set_title(self.class_names[label][:16], fontsize=8)
        return figure
