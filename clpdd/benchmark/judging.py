"""Judging a comparison's sets: with the encoder that distilled them, and at their end with others."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..catalogue.protocols import PROTOCOLS
from ..config.evaluate import EvaluateSettings
from ..distilled.dataset import DistilledSet
from ..errors import ResourceError
from ..evaluation.inputs import open_benches
from ..evaluation.pieces import read_piece, write_piece
from ..evaluation.running import module_of, run_protocol, viewed_protocols
from ..evaluation.subject import Bench, Subject, ViewedProtocol
from ..evaluation.worth import few_shot_curve
from ..features.versions import confirm
from ..runtime.machine import explain_memory_errors
from ..stages.evaluate import evaluation_data
from ..stages.project import Project
from ..storage.files import sha256_bytes, sha256_tree
from ..storage.provenance import code_digest
from ..storage.work import fingerprint

__all__ = ["Judging"]

log = logging.getLogger(__name__)

_SKIPPED = (
    "evaluate.protocols names %s, which judge images with another encoder than made them: they are left out, for %s"
)

_SCORES = ("top1", "top5", "mean_per_class", "worst_group")

_FEW_SHOT = ViewedProtocol("closed_form", "clean")


@dataclass(frozen=True)
class _Judge:
    """An encoder that judges, what its kernels are, and the one that distilled where that is another."""

    name: str
    bench: Bench
    kernels: str
    teacher: Bench | None


class Judging:
    """The benches of a comparison, and what is found on them; every judgement is kept in the work of its set.

    Args:
        project: see ``benchmark.run.compare``.
        encoder: which distils.
        judge: ``test`` or ``validation``.
        others: further encoders that judge the sets at their end.

    Attributes:
        bench: of the encoder that distils.
        skipped: protocols of the settings that are not run, because they need another encoder.

    Raises:
        ArtifactError, DataError: as ``evaluation.inputs.open_bench`` does.
        SettingsError: an encoder does not take square images.
    """

    def __init__(self, project: Project, encoder: str, judge: str, others: list[str]) -> None:
        self._project, self._seed = project, project.settings.seed
        wanted = project.settings.benchmark
        probes = {"seeds": wanted.probe_seeds, "views": wanted.views}
        self._settings: EvaluateSettings = project.settings.evaluate.model_copy(update=probes)
        names = [encoder, *(name for name in others if name != encoder)]
        data = {name: evaluation_data(project.layout, name, project.encoder(name)) for name in names}
        benches = open_benches(data, judge)
        self.bench = benches[encoder]
        self._judges = [
            _Judge(name, bench, sha256_tree(data[name].kernels), None if name == encoder else self.bench)
            for name, bench in benches.items()
        ]
        for one in self._judges:
            one.bench.encoder.require_square("judging the sets of a comparison")
            index = data[one.name].test_index
            if judge == "test" and index is not None:
                confirm(one.bench.judge, one.bench.encoder, index)
        across = [name for name in self._settings.protocols if PROTOCOLS[name].across]
        self.skipped = across if len(self._judges) == 1 else []
        if self.skipped:
            why = "benchmark.transfer_to names none" if judge == "test" else "choices are judged with one encoder"
            log.warning(_SKIPPED, " and ".join(self.skipped), why)

    def rows(
        self, data: DistilledSet, point: str, folder: Path, last: bool, tick: Callable[[], object]
    ) -> list[dict[str, Any]]:
        """What probes on a set reach: rows of the columns that say how it was judged, and the scores.

        Args:
            data: the set.
            point: file name of this point on its distillation's way.
            folder: takes the judgements.
            last: whether it is the end, which the other encoders judge as well.
            tick: called now and then; it may raise to stop the work.
        """
        return [
            row
            for judge in (self._judges if last else self._judges[:1])
            for row in self._judged(judge, data, point, folder, tick)
        ]

    def _judged(
        self, judge: _Judge, data: DistilledSet, point: str, folder: Path, tick: Callable[[], object]
    ) -> list[dict[str, Any]]:
        settings, rows = self._settings, []
        subject: Subject | None = None
        for protocol in viewed_protocols(settings, not len(data), judge.teacher is not None):
            tick()
            file = folder / self._digest(protocol.name, judge) / f"{point}-{protocol}.json"
            piece = read_piece(file)
            if piece is None:
                subject = subject or Subject(data, judge.bench, settings, self._seed, tick, judge.teacher)
                with explain_memory_errors(f"lower evaluate.encoder_batch (now {settings.encoder_batch})"):
                    found = run_protocol(subject, protocol)
                piece = {"rows": found["rows"]}
                write_piece(file, piece)
            about = {"eval_encoder": judge.name, "protocol": protocol.name, "views": protocol.views}
            for row in piece["rows"]:
                scores = {name: row.get(name) for name in ("draw", *_SCORES)}
                rows.append(about | {"probe_seed": row["seed"]} | scores)
        return rows

    def _digest(self, protocol: str, judge: _Judge) -> str:
        deciding = {
            "settings": self._settings.model_dump(mode="json", exclude={"protocols"}),
            "seed": self._seed,
            "judge": judge.bench.judge.digest,
            "code": code_digest("clpdd.stages.evaluate", module_of(protocol), *judge.bench.encoder.code),
        }
        if judge.teacher is not None:  # the work's own fingerprint tells of the encoder that distilled
            deciding |= {"encoder": judge.bench.encoder.describe(), "kernels": judge.kernels}
        return sha256_bytes(json.dumps(deciding, sort_keys=True).encode())[:16]

    def few_shot(self) -> dict[str, Any] | None:
        """``evaluation.worth.few_shot_curve`` of real images with the encoder that distils; measured once.

        ``None`` where the settings do not ask for the closed-form probe, with which it is measured, or memory does not
        hold it (said).
        """
        if _FEW_SHOT not in viewed_protocols(self._settings, full=False):
            return None
        bench = self.bench
        inputs = {name: getattr(bench, name).digest for name in ("train", "validation", "judge")}
        record = fingerprint(
            inputs=inputs | {"kernels": self._judges[0].kernels, "encoder": bench.encoder.describe()},
            ridge=self._settings.ridge,
            seed=self._seed,
            code=code_digest("clpdd.evaluation.worth"),
        )
        with self._project.run.folder("benchmark", f"{bench.encoder.name}/few-shot", record) as work:
            file = work.out / "curves.json"
            found = read_piece(file) if work.finished else None
            if found is None:
                try:
                    curves = few_shot_curve(bench, self._settings.ridge, self._seed)
                except ResourceError as error:
                    log.warning("no few-shot curve is drawn: %s", error)
                    return None
                found = {name: [[count, round(top1, 6)] for count, top1 in own] for name, own in curves.items()}
                write_piece(file, found)
                work.finish()
            return found
