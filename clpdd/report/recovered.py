"""The settings that artifacts were made with, read from their records: for a report without a settings file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..catalogue.methods import METHODS
from ..config.distill import DistillSettings
from ..config.evaluate import EvaluateSettings
from ..config.settings import Settings
from ..distilled.reading import read_set
from ..storage.layout import Layout
from .data import read_mapping
from .table import lines_of

__all__ = ["recovered_settings"]


def recovered_settings(layout: Layout, encoder: str, known: Mapping[str, Any]) -> Settings:
    """Settings under which ``report.data.gather`` reads a folder of one encoder's results.

    Args:
        encoder: the only one.
        known: sections that the caller knows, ``seed``, ``cache`` and so on; they stay as they are.

    Returns:
        ``methods`` and ``evaluate`` as the results have them, ``distill`` as of the first method that optimises.

    Raises:
        ArtifactError: there are no results, or a set they name is gone.
    """
    lines = [line for line in lines_of(layout) if line["eval_encoder"] == encoder]
    methods = sorted({line["method"] for line in lines}, key=list(METHODS).index)
    made = [read_set(layout.distilled(encoder, name)).info for name in methods]
    used = next((info["settings"] for info in made if METHODS[info["method"]].optimises), made[0]["settings"])
    protocols = list(dict.fromkeys(line["protocol"] for line in lines if line["method"] != "full"))
    records = read_mapping(layout.results / "details.json").get("fingerprints", {}).values()
    judged = dict(next((record["settings"] for record in records if record.get("settings")), {}))
    if protocols:
        judged["protocols"] = protocols
    return Settings(
        encoders=[encoder],
        methods=methods,
        distill=DistillSettings(**_fields(DistillSettings, used)),
        evaluate=EvaluateSettings(**_fields(EvaluateSettings, judged)),
        **known,
    )


def _fields(section: type[DistillSettings | EvaluateSettings], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in section.model_fields}
