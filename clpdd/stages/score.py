"""Any set of images, judged as the stage evaluate judges distilled ones: the same probes on the same test split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from ..config.dataset import DatasetSettings
from ..config.distill import DistillSettings
from ..config.evaluate import EvaluateSettings
from ..datasets.index import Index
from ..distilled.dataset import DistilledSet
from ..distilled.foreign import read_set
from ..encoders.deterministic import deterministic
from ..errors import ArtifactError, DataError, ResourceError, SettingsError
from ..evaluation.inputs import EvaluationData, open_bench
from ..evaluation.running import run_protocol, viewed_protocols
from ..evaluation.subject import Bench, Subject
from ..evaluation.worth import Worth, worth_of
from ..features.same_images import refuse_other_images
from ..features.versions import confirm
from ..methods.real import Random
from ..optimise.context import Context
from ..runtime.machine import explain_memory_errors
from ..runtime.tables import aligned, with_spread
from .evaluate import evaluation_data
from .project import Project

__all__ = ["RandomImages", "judge_images", "run_score", "score_json", "score_lines", "score_table"]

RandomImages = tuple[Path, DistillSettings]
"""Index of the training split that random real images are drawn from, and settings of the method ``random``."""


def run_score(
    project: Project, images: Path, encoders: Sequence[str], *, worth: bool = False, random: bool = False
) -> list[dict[str, Any]]:
    """Judge images with encoders whose features and kernels are there.

    Protocols, seeds and views are those of the section ``evaluate``, all but what asks for a distilling encoder.

    Args:
        images: see ``clpdd.distilled.foreign.read_set``.
        encoders: names in ``encoders``.
        worth: whether to measure what the set carries, too.
        random: whether to judge as many random real images of every class, too.

    Returns:
        What ``judge_images`` returns of each encoder, one after the other.

    Raises:
        DataError: images that cannot be judged as they are, see ``read_set``; or a class with fewer training images.
        ArtifactError: features or kernels are missing, or other versions of the libraries made other features.
        SettingsError: no encoder, or one whose input is not square.
    """
    settings, found = project.settings, list[dict[str, Any]]()
    if not encoders:
        raise SettingsError("score needs at least one encoder: give --encoder")
    drawn = (project.layout.index("train"), settings.variant("random").settings) if random else None
    for name in encoders:
        kernels = project.layout.kernels(name)
        if not kernels.is_dir():
            raise ArtifactError(
                f"{kernels} does not exist: run clpdd cache and clpdd kernels, each with --encoder {name}"
            )
        given = evaluation_data(project.layout, name, project.encoder(name))
        data = settings.dataset
        found += judge_images(images, name, given, settings.evaluate, settings.seed, data, worth=worth, random=drawn)
    return found


def judge_images(
    images: Path,
    name: str,
    given: EvaluationData,
    settings: EvaluateSettings,
    seed: int,
    dataset: DatasetSettings,
    *,
    worth: bool = False,
    random: RandomImages | None = None,
) -> list[dict[str, Any]]:
    """Judge images with one encoder.

    Args:
        name: what the encoder is called.
        dataset: of the data that it is judged on: its ``max_pixels``, and what a Parquet file's columns are called.
        random: to judge as many random real images of every class, too, in draws of the same seed as the method's.

    Returns:
        A mapping for each protocol with ``encoder``, ``protocol``, ``views``, ``rows`` (as in ``results.parquet``),
        ``notes`` and, with ``random``, ``random_rows``; with ``worth`` one more, of ``encoder`` and ``worth``.

    Raises what ``run_score`` raises.
    """
    encoder, found = given.encoder, list[dict[str, Any]]()
    encoder.require_square("judging images")
    bench = open_bench(name, given)
    if given.test_index is not None:
        confirm(bench.judge, encoder, given.test_index)
    columns = dataset.image_column, dataset.label_column
    data = read_set(images, bench.judge.class_names, encoder.transform, dataset.max_pixels, columns)
    drawn = None if random is None else _random_images(random, data, bench, seed)
    subject = Subject(data, bench, settings, seed, lambda: None)
    lower = f"lower evaluate.encoder_batch (now {settings.encoder_batch}) or evaluate.views"
    with deterministic(encoder.device), explain_memory_errors(lower):
        told = [{"encoder": name, "worth": _worth_of(subject, settings.ridge)}] if worth else []  # may lack memory
        for viewed in viewed_protocols(settings, full=False):
            piece = run_protocol(subject, viewed)
            facts = {"encoder": name, "protocol": viewed.name, "views": viewed.views}
            found.append(facts | {"rows": piece["rows"], "notes": piece["notes"]})
        if drawn is not None:
            subject = Subject(drawn, bench, settings, seed, lambda: None)
            for viewed, one in zip(viewed_protocols(settings, full=False), found, strict=True):
                one["random_rows"] = run_protocol(subject, viewed)["rows"]
    return [*found, *told]


def _worth_of(subject: Subject, ridge: float) -> Worth:
    try:
        return worth_of(subject, ridge)
    except ResourceError as error:
        raise ResourceError(f"{error}, or leave out --worth") from error


def _random_images(random: RandomImages, data: DistilledSet, bench: Bench, seed: int) -> DistilledSet:
    """What the method ``random`` gives with as many images of every class as a draw of ``data`` has."""
    path, settings = random
    index = Index.open(path)
    refuse_other_images(bench.train, index)
    names = bench.judge.class_names
    counts = torch.bincount(data.draws[0].labels, minlength=len(names)).tolist()
    have = torch.bincount(torch.tensor(index.labels), minlength=len(names)).tolist()
    for label, wanted, there in zip(names, counts, have, strict=True):
        if wanted > there:
            raise DataError(
                f"class {label!r} has {wanted} images in the set, and only {there} training images: no such number of "
                f"random ones can be drawn; leave out --random"
            )
    per_class = {"default": 1} | dict(zip(names, counts, strict=True))
    context = Context(
        settings=settings.model_copy(update={"images_per_class": per_class}),
        seed=seed,
        encoder=bench.encoder,
        index=index,
        train=bench.train,
        validation=bench.validation,
        kernels=bench.kernels,
        work=path.parent,  # nothing is kept there: the method optimises nothing
        record={"method": "random"},
    )
    return Random()(context)


_SCORES = ("top5", "mean_per_class", "worst_group")


def score_lines(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``judge_images`` found as JSON values, named as in ``report.lines.COLUMNS``.

    Returns:
        For each protocol ``eval_encoder``, ``protocol``, ``views``, ``probes``, and in percent ``top1``, ``top1_std``,
        ``over_random``, ``top5``, ``mean_per_class``, ``worst_group``, ``None`` where there is no value. Of a worth
        ``eval_encoder`` and ``worth``: ``top1``, ``full``, ``share_of_full``, ``worth``, ``curves`` and
        ``mean_distance`` (see ``evaluation.worth``).
    """
    lines = list[dict[str, Any]]()
    for one in found:
        if isinstance(one.get("worth"), Worth):
            lines.append({"eval_encoder": one["encoder"], "worth": one["worth"].facts()})
            continue
        rows, drawn = one["rows"], one.get("random_rows")
        top1 = [row["top1"] for row in rows]
        line = {"eval_encoder": one["encoder"], "protocol": one["protocol"], "views": one["views"], "probes": len(rows)}
        line |= {"top1": round(fmean(top1), 6), "top1_std": round(stdev(top1), 6) if len(top1) > 1 else None}
        chance = None if drawn is None else fmean(row["top1"] for row in drawn)
        line["over_random"] = None if chance is None else round(fmean(top1) - chance, 6)
        line |= {name: round(fmean(row[name] for row in rows), 6) if name in rows[0] else None for name in _SCORES}
        lines.append(line)
    return lines


def score_json(found: Sequence[dict[str, Any]]) -> str:
    """``score_lines`` as a JSON array."""
    return json.dumps(score_lines(found), indent=2, ensure_ascii=False)


_SHOWN = {
    "over_random": ("over random", "+.2f"),
    "top5": ("top-5 %", ".2f"),
    "mean_per_class": ("mean per class %", ".2f"),
    "worst_group": ("worst group %", ".2f"),
}


def score_table(found: Sequence[dict[str, Any]]) -> str:
    """What ``judge_images`` found, as text."""
    lines = [line for line in score_lines(found) if "worth" not in line]
    shown = {name: how for name, how in _SHOWN.items() if any(line[name] is not None for line in lines)}
    table = [("evaluated with", "protocol", "views", "top-1 %", *(title for title, _ in shown.values()), "probes")]
    for line in lines:
        numbers = [with_spread(line["top1"], line["top1_std"])]
        numbers += [format(line[name], form) for name, (_, form) in shown.items()]
        table.append((line["eval_encoder"], line["protocol"], line["views"], *numbers, str(line["probes"])))
    said = [f"\n{one['encoder']}:\n{one['worth'].described()}" for one in found if isinstance(one.get("worth"), Worth)]
    if "over_random" in shown:
        said.insert(0, "\nover random: points of top-1 above as many random real images, probed alike")
    return "\n".join([aligned(table, left=3), *said])
