"""Results for a notebook: a mapping of means that also is a table and a figure."""

from __future__ import annotations

import importlib
from html import escape
from statistics import fmean
from typing import Any

from ..runtime.notebook import figure_of, html_table, optional
from ..storage.layout import Layout
from .data import read_table
from .lines import COLUMNS, headline_of, tells_mean_per_class, tells_top5
from .table import headline_in_words, lines_of, table_of
from .words import views_in_words

__all__ = ["Results"]


class Results(dict[str, dict[str, float]]):
    """Mean test top-1 in percent: ``results["clp"]["sgd (bank-100)"]``, by method, then by protocol and views.

    Attributes:
        lines: everything of the table, mappings with the keys of ``report.lines.COLUMNS``, sorted as it is.
    """

    def __init__(self, scores: dict[str, dict[str, float]], lines: list[dict[str, Any]]) -> None:
        super().__init__(scores)
        self.lines = lines

    @classmethod
    def of(cls, layout: Layout) -> Results:
        """The results in a data folder. Raises ``ArtifactError`` when there are none."""
        lines = lines_of(layout)
        found: dict[str, dict[str, list[float]]] = {}
        for row in read_table(layout.results / "results.parquet").to_pylist():
            protocol = f"{row['protocol']} ({row['views']})"
            found.setdefault(row["method"], {}).setdefault(protocol, []).append(row["top1"])
        return cls({method: {p: fmean(v) for p, v in by.items()} for method, by in found.items()}, lines)

    @property
    def table(self) -> Any:
        """A row for each method, probe and kind of views: names, ``top1``, ``top1_std``, ``share_of_full`` and more.

        A ``pandas.DataFrame``, or a ``pyarrow.Table`` where pandas is not installed.
        """
        rows = [{name: line[name] for name in COLUMNS} for line in self.lines]
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            return optional("pyarrow", "table").Table.from_pylist(rows)
        return pandas.DataFrame(rows, columns=list(COLUMNS))

    def plot(self) -> Any:
        """A ``matplotlib`` figure: a panel for each probe, a bar for each method, all training images as a line.

        Raises ``ResourceError`` where matplotlib is not installed.
        """
        shown = [line for line in self.lines if line["method"] != "full" and line["top1"] is not None]
        panels: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for line in shown:
            panels.setdefault((line["eval_encoder"], line["protocol"], line["views"]), []).append(line)
        most = max((len(lines) for lines in panels.values()), default=1)
        figure = figure_of(7, (0.8 + 0.35 * most) * max(1, len(panels)))
        axes = figure.subplots(max(1, len(panels)), 1, squeeze=False).ravel()
        for axis, ((encoder, protocol, views), lines) in zip(axes, panels.items(), strict=False):
            names = [line["method"] for line in lines]
            spread = [line["top1_std"] or 0.0 for line in lines]
            axis.barh(names, [line["top1"] for line in lines], xerr=spread, color="#5b7c99")
            best = next((100 * line["top1"] / line["share_of_full"] for line in lines if line["share_of_full"]), None)
            if best is not None:
                axis.axvline(best, color="#c44", linestyle="--", label="all training images")
                axis.legend(loc="lower right", fontsize=8)
            axis.set(xlim=(0, 100), xlabel="test top-1 in percent")
            axis.set_title(f"{protocol}, {views_in_words(views, of_each=False)}, {encoder}", fontsize=10)
            axis.invert_yaxis()
        return figure

    def __repr__(self) -> str:
        return table_of(self.lines)

    def _repr_html_(self) -> str:
        shown = {
            "top1": "top-1 %",
            "top1_std": "±",
            "share_of_full": "% of full",
            "over_random": "over random",
            "top5": "top-5 %",
            "mean_per_class": "mean per class %",
            "worst_group": "worst group %",
            "probes": "probes",
        }
        if not tells_top5(self.lines):
            shown.pop("top5")
        if all(line["over_random"] is None for line in self.lines):
            shown.pop("over_random")
        if not tells_mean_per_class(self.lines):
            shown.pop("mean_per_class")
        if all(line["worst_group"] is None for line in self.lines):
            shown.pop("worst_group")
        header = ("probe", "trained on", "method", *shown.values())
        rows = [
            (
                line["protocol"],
                "all images" if line["method"] == "full" else views_in_words(line["views"], of_each=False),
                line["method"],
                *(line[name] for name in shown),
            )
            for line in self.lines
        ]
        return f"{html_table(header, rows)}<p>{escape(headline_in_words(headline_of(self.lines)))}</p>"
