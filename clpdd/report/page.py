"""The page: what to show of the facts, the images that go with them, and the template they fill."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from ..catalogue.protocols import PROTOCOLS, bound_of
from ..config.settings import Settings
from ..distilled.reading import StoredSet
from ..storage.layout import Layout
from . import figures
from .classes import LISTED
from .clocks import distill_seconds, evaluation_clocks, stage_lines
from .data import BOUNDS, KEYS, TITLES
from .files import linked_files
from .gallery import gallery
from .lines import tells_mean_per_class
from .pictures import SHEET, SHEET_COLUMNS
from .transfer import heat_maps
from .words import classifier_in_words, views_in_words

if TYPE_CHECKING:
    from .insight import Insight  # other pages are drawn from here as well, and hang on no encoder

__all__ = ["duration", "megabytes", "render", "template"]

_SIDE_BY_SIDE = 12  # most classes whose accuracies and confusion stand beside each other

_METHODS_BY_CLASS = 5  # most methods with a bar for each class

_PROTOCOLS = {name: entry.title for name, entry in PROTOCOLS.items()}
_LIBRARIES = (
    "clpdd",
    "torch",
    "timm",
    "torchvision",
    "numpy",
    "pyarrow",
    "zarr",
    "safetensors",
    "pillow",
    "scikit-learn",
)


def render(
    facts: dict[str, Any],
    sets: Mapping[tuple[str, str], StoredSet],
    clocks: list[dict[str, Any]],
    layout: Layout,
    settings: Settings,
    insight: Insight | None = None,
) -> str:
    """The whole page as HTML; every text out of the data is escaped by the template."""
    return template("report.html.j2").render(
        facts=facts,
        headline=facts["headline"],
        bounds=BOUNDS,
        galleries=[gallery(facts, sets, encoder, layout, settings) for encoder in settings.encoders],
        accuracy=figures.accuracy_panels(facts["summary"]),
        curves=figures.curve_panels(facts["curves"]),
        transfer=heat_maps(facts),
        classes=_classes(facts, settings),
        groups=_groups(facts["summary"], clocks),
        unbalanced=_unbalanced(facts["summary"]),
        stages=stage_lines(clocks),
        distill_seconds=distill_seconds(clocks, facts["headline"]),
        insight=insight,
        files=linked_files(layout, settings, facts["headline"]["method"]),
        settings=_flat(settings.model_dump(mode="json")),
        versions=_versions(),
        sheet_columns=SHEET_COLUMNS,
        sheet_rows=SHEET // SHEET_COLUMNS,
    )


def template(name: str) -> jinja2.Template:
    """A template of the package with the filters that all pages share."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("clpdd.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    return environment.get_template(name)


# -- words -----------------------------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``0.42 s``, ``53 s``, ``2 min 05 s``, ``1 h 03 min``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def megabytes(amount: float | None) -> str:
    """Mebibytes, or gibibytes from 1024 on."""
    if amount is None:
        return "–"
    return f"{amount / 1024:.1f} GiB" if amount >= 1024 else f"{amount:.0f} MiB"


def breakable(name: str) -> Markup:
    """An escaped name that may break across lines after ``_``, ``.``, ``-`` and ``/``."""
    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(name))))


_FILTERS: dict[str, Callable[..., Any]] = {
    "count": lambda number: f"{number:,}",
    "percent": lambda value: "–" if value is None else f"{value:.1f}",
    "points": lambda value: "–" if value is None else f"{value:+.1f}".replace("-", "−"),
    "method": lambda name: TITLES.get(name, name),
    "protocol": lambda name: _PROTOCOLS.get(name, name),
    "views": views_in_words,
    "probe": classifier_in_words,
    "capital": lambda text: text[:1].upper() + text[1:],
    "breakable": breakable,
    "duration": duration,
    "megabytes": megabytes,
}


# -- probes ----------------------------------------------------------------------------------------------------------


def _classes(facts: dict[str, Any], settings: Settings) -> dict[str, Any] | None:
    """Accuracy by class and confusion of the main method's probe, beside the one on all training images."""
    headline, confusion = facts["headline"], facts["confusion"]
    own = [d for d in facts["classes"] if d["distil_encoder"] == d["eval_encoder"] == headline["encoder"]]
    own.sort(key=lambda d: (d["protocol"] != headline["protocol"], d["views"] != headline["views"]))
    chosen = next((d for d in own if d["method"] == headline["method"]), None)
    if chosen is None:
        return None
    bound = bound_of(chosen["protocol"])
    full = next((d for d in own if d["method"] == "full" and d["protocol"] == bound), None)
    names, limit = facts["class_names"], min(settings.report.max_classes, LISTED)
    reference = full["per_class"] if full and full is not chosen else [None] * len(names)
    others = [d for d in own if (d["protocol"], d["views"]) == (chosen["protocol"], chosen["views"])]
    drawn = [chosen, *(d for d in others if d["method"] not in (chosen["method"], "full"))][:_METHODS_BY_CLASS]
    listed = [
        {"number": i, "name": n, "accuracy": a, "full": f, "bars": [d["per_class"][i] for d in drawn]}
        for i, (n, a, f) in enumerate(zip(names, chosen["per_class"], reference, strict=True))
    ]
    if len(listed) > limit:
        ranked = sorted(listed, key=lambda c: (c["accuracy"] is None, c["accuracy"] or 0.0, c["number"]))
        half = limit // 2
        groups = [("Lowest", ranked[:half]), ("Highest", ranked[-half:])]
    else:
        groups = [("", listed)]
    return {
        "protocol": chosen["protocol"],
        "views": chosen["views"],
        "groups": groups,
        "methods": [d["method"] for d in drawn],
        "wide": len(names) > _SIDE_BY_SIDE,
        "has_full": any(f is not None for f in reference),
        "names": names[:limit],
        "confusion": figures.matrix(confusion["rows"], 0, 100, power=0.5) if confusion else None,
        "others": bool(confusion and confusion["others"]),
        "mistakes": confusion["mistakes"][:5] if confusion else [],
    }


# -- clocks, settings ------------------------------------------------------------------------------------------------


def _groups(summary: list[dict[str, Any]], clocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of the result table with their readings, by eval encoder and protocol.

    A bound that no set was judged by stands with the first protocol that it bounds.
    """
    measured = evaluation_clocks(clocks)
    run = {line["protocol"] for line in summary if line["method"] != "full"}
    named = {bound: protocol for protocol, bound in reversed(BOUNDS.items()) if protocol in run and bound not in run}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in summary:
        readings = measured.get(tuple(line[key] for key in KEYS), {})
        line = line | {key: readings.get(key) for key in ("seconds", "peak_memory_mb")}
        group = (line["eval_encoder"], named.get(line["protocol"], line["protocol"]))
        groups.setdefault(group, []).append(line)
    return [
        {"encoder": encoder, "protocol": protocol, "lines": sorted(lines, key=lambda line: line["method"] == "full")}
        for (encoder, protocol), lines in groups.items()
    ]


def _unbalanced(summary: list[dict[str, Any]]) -> bool:
    """Whether any mean-per-class accuracy is another than top-1 to the one decimal that the page shows."""
    scores = ("top1", "mean_per_class")
    return tells_mean_per_class([{name: line[name]["mean"] for name in scores} for line in summary], digits=1)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted key, value as YAML writes it)."""
    if isinstance(value, dict) and value:
        return [line for k, v in value.items() for line in _flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, list):
        return [(prefix, "[" + ", ".join(_plain(v) for v in value) + "]")]
    return [(prefix, _plain(value))]


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if value == {} else str(value)


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
