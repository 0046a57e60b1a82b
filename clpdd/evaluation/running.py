"""Which protocols are run on a set, and running one of them."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from ..catalogue.protocols import PROTOCOLS
from ..config.evaluate import EvaluateSettings
from ..probe.scoring import score
from .confusion import json_form
from .subject import Subject, ViewedProtocol

__all__ = ["module_of", "run_protocol", "viewed_protocols"]

_BLOCK_ROWS = 8192


def viewed_protocols(settings: EvaluateSettings, full: bool, across: bool = False) -> list[ViewedProtocol]:
    """What is run on a set: on images the protocols of the settings, on all real data the probes that bound them.

    ``full`` has no images to augment: its ridge probe stands beside ``closed_form``, its logistic one beside ``sgd``.
    ``across``: the set was distilled with another encoder.
    """
    if full:
        return [ViewedProtocol(name, "clean") for name, entry in PROTOCOLS.items() if entry.of_all_data]
    bank = [f"bank-{settings.views}"] if settings.views else []
    found = []
    for name in settings.protocols:
        entry = PROTOCOLS[name]
        if entry.across and not across:
            continue
        augmented = (bank if entry.bank else []) or (["fresh"] if entry.fresh else [])
        seen = [*(["clean"] if entry.clean else []), *augmented]
        found += [ViewedProtocol(name, views) for views in seen]
    return found


def module_of(name: str) -> str:
    """The dotted name of the module that implements a protocol: where ``code_digest`` starts for it."""
    return PROTOCOLS[name].implementation


def run_protocol(subject: Subject, viewed: ViewedProtocol) -> dict[str, Any]:
    """Train and score one protocol: JSON values, percentages of the judging split.

    Returns:
        ``rows``: ``draw``, ``seed``, ``top1``, ``top5`` and ``mean_per_class`` of every probe; ``confusion``: counts by
        true class and what it was taken for, summed over the probes (``evaluation.confusion``); ``notes``: what was
        chosen on validation.
        Where the images have groups, also ``worst_group`` in the rows, the lowest top-1 of any group, and ``groups``:
        the mean of each.
    """
    probes, streams, notes = importlib.import_module(module_of(viewed.name)).train(subject, viewed.views)
    judge = subject.bench.judge
    names = sorted(set(judge.groups or ()))
    numbers = {name: number for number, name in enumerate(names)}
    groups = None if judge.groups is None else torch.tensor([numbers[name] for name in judge.groups])
    found = score(probes, judge.blocks(_BLOCK_ROWS), groups)
    rows: list[dict[str, Any]] = [
        {"draw": stream.draw, "seed": stream.index, "top1": top1, "top5": top5, "mean_per_class": each}
        for stream, top1, top5, each in zip(streams, found.top1, found.top5, found.mean_per_class, strict=True)
    ]
    true, predicted, count = found.pairs.tolist()
    confusion = json_form(true, predicted, count, subject.bench.classes)
    piece: dict[str, Any] = {"rows": rows, "confusion": confusion, "notes": notes}
    if found.groups is not None:
        for row, worst in zip(rows, found.groups.amin(1).tolist(), strict=True):
            row["worst_group"] = worst
        piece["groups"] = dict(zip(names, found.groups.mean(0).tolist(), strict=True))
    return piece
