"""The result table as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from ..errors import ArtifactError
from ..runtime.tables import aligned, with_spread
from ..storage.layout import Layout
from .lines import COLUMNS, headline_of, result_lines, tells_mean_per_class, tells_top5
from .words import probe_in_words, views_in_words

__all__ = [
    "headline_in_words",
    "lines_of",
    "result_csv",
    "result_json",
    "result_table",
    "table_of",
]


def lines_of(layout: Layout) -> list[dict[str, Any]]:
    """``report.lines.result_lines`` of a data folder. Raises ``ArtifactError`` when there are no results yet."""
    path = layout.results / "results.parquet"
    if not path.exists():
        raise ArtifactError(f"{path} does not exist: run `dvc repro`, or `clpdd run`, or `clpdd evaluate`")
    return result_lines(path)


def result_table(layout: Layout) -> str:
    """The table as text, the headline in words, and where the report is. Raises ``ArtifactError``."""
    page = layout.results / "report.html"
    text = table_of(lines_of(layout))
    return f"{text}\n\nreport: {page.resolve().as_uri()}" if page.exists() else text


def result_json(layout: Layout) -> str:
    """The lines as a JSON array. Raises ``ArtifactError``."""
    return json.dumps(lines_of(layout), indent=2, ensure_ascii=False)


def result_csv(layout: Layout) -> str:
    """The lines as CSV with a header; empty cells where there is no value. Raises ``ArtifactError``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines_of(layout))
    return text.getvalue().rstrip("\n")


def table_of(lines: list[dict[str, Any]]) -> str:
    """Lines as a table, and below it what the probes are and the headline in words."""
    several = len({line[key] for line in lines for key in ("distil_encoder", "eval_encoder")}) > 1
    grouped = any(line["worst_group"] is not None for line in lines)
    encoders = ["distilled with", "evaluated with"] if several else []
    telling, unbalanced = tells_top5(lines), tells_mean_per_class(lines)
    compared = any(line["over_random"] is not None for line in lines)
    more = ["over random"] if compared else []
    more += [*(["top-5 %"] if telling else []), *(["mean per class %"] if unbalanced else [])]
    more += ["worst group %"] if grouped else []
    header = ["probe", "trained on", "method", *encoders, "top-1 %", "% of full", *more, "probes"]
    cells = []
    for line in lines:
        names = [line["distil_encoder"], line["eval_encoder"]] if several else []
        seen = "all images" if line["method"] == "full" else views_in_words(line["views"], of_each=False)
        top1 = "" if line["top1"] is None else with_spread(line["top1"], line["top1_std"])
        numbers = [top1, _percent(line["share_of_full"], 1)]
        numbers += [_points(line["over_random"])] if compared else []
        numbers += [_percent(line["top5"])] if telling else []
        numbers += [_percent(line["mean_per_class"])] if unbalanced else []
        last = [_percent(line["worst_group"])] if grouped else []
        cells.append([line["protocol"], seen, line["method"], *names, *numbers, *last, str(line["probes"])])
    text = aligned([header, *cells], left=3 + len(encoders))
    judging = list(dict.fromkeys(line["protocol"] for line in lines if line["method"] != "full"))
    shown = dict.fromkeys(line["protocol"] for line in lines)
    meanings = [(name, probe_in_words(name, judging)) for name in shown]
    told = [f"{name}: {meaning}" for name, meaning in meanings if meaning]
    told += ["over random: points of top-1 above as many random real images, probed alike"] if compared else []
    number = headline_in_words(headline_of(lines))
    return "\n\n".join([text, "\n".join([*told, *([number] if number else [])])])


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def headline_in_words(line: dict[str, Any] | None) -> str:
    """One sentence for ``headline_of``; empty for ``None``."""
    if line is None or line["top1"] is None:
        return ""
    share = line["share_of_full"]
    part = "" if share is None else f", {share:.1f} % of what all training images reach"
    how = f"{line['protocol']}, {views_in_words(line['views'], of_each=False)}"
    return f"the number: {line['method']} {line['top1']:.1f} % top-1 ({how}){part}"
