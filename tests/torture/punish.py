"""The torture itself: kill, damage, restart, compare."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.mend import mend

from .damage import Damage, damage
from .moments import Moment, plan
from .project import CHECKPOINT_STEPS, STAGES, Project

__all__ = ["Punishment", "Report", "torture"]

_ATTEMPT_SECONDS = 300
_GAPS = 0.4  # share of the gaps between stages in which DVC itself is killed
_DYING_SECONDS = 5  # a stage that the same signal has reached is gone by then
_WAYS = {
    "SIGKILL to the group": 10,
    "SIGKILL to the stage": 2,
    "SIGKILL to DVC": 2,
    "SIGTERM to the group": 2,
    "SIGINT to the group": 1,
    "SIGUSR1 to the stage": 1,
}
_GENTLE = {"SIGTERM to the group", "SIGINT to the group", "SIGUSR1 to the stage"}


@dataclass
class Report:
    """What was done and what came of it."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    ways: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    mended: int = 0
    damages: list[Damage] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    compared: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        lines = [f"kills survived  {self.kills.total()}"]
        for stage in STAGES:
            moments = [f"{name} {n}" for (where, name), n in sorted(self.kills.items()) if where == stage]
            if moments:
                total = sum(n for (where, _), n in self.kills.items() if where == stage)
                lines.append(f"  {stage:<13} {total:>3}  {', '.join(moments)}")
        lines.append(f"  by            {', '.join(f'{way} {n}' for way, n in self.ways.most_common())}")
        lines.append(f"  came too late {self.missed} more (the stage had ended)")
        if self.mended:
            lines.append(f"DVC's own files {self.mended} cut by a kill and removed, as flows.mend does before a run")
        noticed = sum(d.noticed for d in self.damages)
        kinds = Counter(d.kind for d in self.damages)
        told = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
        lines.append(f"damage noticed  {noticed} of {len(self.damages)}" + (f"  ({told})" if told else ""))
        worst = max(self.repeated, default=0)
        lines.append(
            f"steps repeated  {sum(self.repeated)} after {len(self.repeated)} kills while optimising, at most {worst} "
            f"(checkpoints lie {CHECKPOINT_STEPS} apart)"
        )
        different = sum(f.startswith("different") for f in self.failures)
        lines.append(f"hashes equal    {self.compared - different} of {self.compared}")
        lines.append(f"bytes lost      {'0' if not different else 'see below'}")
        lines.append(f"stale files     {sum(f.startswith('stale') for f in self.failures)}")
        lines.append(f"orphans         {sum(f.startswith('orphan') for f in self.failures)}")
        lines.append(f"hangs           {sum(f.startswith('hang') for f in self.failures)}")
        lines += [f"FAILED          {failure}" for failure in self.failures]
        lines.append(f"{'passed' if self.passed else 'FAILED'} in {self.seconds:.0f} s")
        return "\n".join(lines)


def torture(
    folder: Path, runs: int, kills: int, seed: int, methods: list[str] | None, say: Callable[[str], object]
) -> Report:
    """Run a copy of the pipeline in ``folder`` untouched, then ``runs`` times with ``kills`` kills each."""
    begun = time.monotonic()
    project, report = Project(folder, methods), Report()
    say("reference: one untouched run")
    if project.start(folder / "reference.log").wait(_ATTEMPT_SECONDS):
        report.failures.append(f"the untouched run fails:\n{_tail(folder / 'reference.log')}")
        return report
    reference = project.hashes()
    say(f"reference: {len(reference)} files in {time.monotonic() - begun:.0f} s")
    stages = tuple(s for s in STAGES if s != "distill real" or methods is None or set(methods) - {"clp"})
    for run in range(runs):
        project.forget()
        rng = random.Random(f"{seed}/{run}")
        Punishment(project, rng, plan(rng, kills, stages), report, folder / f"run-{run}", say).go()
        _compare(project, reference, run, report)
    spared = [] if runs * kills < 3 * len(stages) else sorted({*stages} - {stage for stage, _ in report.kills})
    report.failures += [f"no kill came at {stage}" for stage in spared]
    report.seconds = time.monotonic() - begun
    return report


def _compare(project: Project, reference: dict[str, str], run: int, report: Report) -> None:
    if not project.wait_until_quiet(20):
        report.failures.append(f"orphan processes after run {run}: {project.processes()}")
    found = project.hashes() if (project.folder / "dvc.lock").exists() else {}
    report.compared += len(reference)
    for name in sorted(reference.keys() | found.keys()):
        if reference.get(name) != found.get(name):
            report.failures.append(f"different after run {run}: {name}")
    report.failures += [f"stale temporary file after run {run}: {name}" for name in project.stale()]
    try:
        status = project.run("status", "--json")
    except subprocess.CalledProcessError as error:
        status = error.stdout + error.stderr
    if re.sub(r"\s", "", status) != '{"inputs":["alwayschanged"]}':  # all others are up to date
        report.failures.append(f"dvc status after run {run}: {status}")


def _tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Punishment:
    """One run of the pipeline, killed until nothing of the plan is left."""

    def __init__(
        self,
        project: Project,
        rng: random.Random,
        moments: list[Moment],
        report: Report,
        logs: Path,
        say: Callable[[str], object],
    ) -> None:
        self.project, self.rng, self.report, self.logs, self.say = project, rng, report, logs, say
        self.pending = {stage: [m for m in moments if m.stage == stage] for stage in STAGES}
        self.open: list[Damage] = []
        self.reached: int | None = None  # the last step that a killed attempt has made
        self.excused = False  # the newest checkpoint had been damaged: this attempt repeats more steps
        self.harmed = False  # it was damaged after this attempt: the next one will
        logs.mkdir()

    def go(self) -> None:
        for attempt in range(10_000):
            log, began = self.logs / f"{attempt:03d}.log", time.time()
            ended = self._attempt(log)
            text = log.read_text(encoding="utf-8", errors="replace")
            self.count_steps(text, began)
            if ended is None:
                continue
            if ended:
                self.report.failures.append(f"{log} ended with exit code {ended}:\n{_tail(log)}")
            break
        self.report.missed += sum(map(len, self.pending.values()))
        self.project.wait_until_quiet()  # a stage whose DVC was killed may still be writing
        self._read_logs()
        self.report.failures += [f"damage not noticed: {d.kind} of {d.file}" for d in self.open if not d.noticed]

    def _read_logs(self) -> None:
        """What every log says when all is over."""
        for harmed in self.open:
            harmed.look(self.logs)
        for log in sorted(self.logs.glob("*.log")):
            text = log.read_text(encoding="utf-8", errors="replace")
            if "Traceback (most recent call last)" in text and "KeyboardInterrupt" not in text:
                self.report.failures.append(f"a traceback in {log}:\n{_tail(log)}")

    def _attempt(self, log: Path) -> int | None:
        """Start DVC; ``None`` when it was killed, else its exit code."""
        self.report.mended += len(mend(self.project.folder))
        process = self.project.start(log)
        deadline = time.monotonic() + _ATTEMPT_SECONDS
        served: set[int] = set()
        seen: set[int] = set()
        while process.poll() is None:
            if time.monotonic() > deadline:
                self.report.failures.append(f"hang: {log} went on for more than {_ATTEMPT_SECONDS} s\n{_tail(log)}")
                self._kill_group(process, signal.SIGKILL)
                return 1
            stage, victim = self.project.stage(process.pid) or ("between", process.pid)
            if stage != "between":
                seen.add(victim)
            key = victim if stage != "between" else -len(seen)  # a gap is known by the stages before it
            # Before the first stage DVC writes no lock file: such moments wait for a later gap.
            choice = [m for m in self.pending[stage] if seen or m.name != "lock write"]
            if not choice or key in served:
                time.sleep(0.02)
                continue
            served.add(key)
            if stage == "between" and self.rng.random() > _GAPS:
                continue  # else all would be spent before the first stages
            moment = choice[0]
            self.pending[stage].remove(moment)
            if self._await(moment, victim, process, deadline) and self._kill(moment, process, victim):
                return None
            if stage == "between" and process.poll() is None:
                self.pending[stage].append(moment)  # it did not come in this gap: it may in another
            else:
                self.report.missed += 1
        return process.wait()

    def _await(self, moment: Moment, victim: int, process: subprocess.Popen[bytes], deadline: float) -> bool:
        """Wait for the moment; whether it came while the victim was alive."""
        data, base = self.project.data, moment.count(self.project.data)
        need = self.rng.randint(*moment.grown)
        delay = self.rng.uniform(*moment.after)

        def alive() -> bool:
            return process.poll() is None and os.path.exists(f"/proc/{victim}")

        def over() -> bool:
            return moment.stage == "between" and self.project.stage(process.pid) is not None

        while moment.count(data) < (base + need if need else 1):
            if not alive() or over() or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        time.sleep(delay)
        return alive()

    # -- killing ---------------------------------------------------------------------------------------------------

    def _kill(self, moment: Moment, process: subprocess.Popen[bytes], victim: int) -> bool:
        """Send one signal; whether it ended the attempt, ``False`` where its stage had already done its work."""
        way = self.rng.choices(list(_WAYS), list(_WAYS.values()))[0]
        if moment.stage == "between" and "stage" in way:
            way = "SIGKILL to the group"
        number = signal.Signals[way.split()[0]]
        if way.endswith("group"):
            self._kill_group(process, number)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim if way.endswith("stage") else process.pid, number)
        if way == "SIGKILL to DVC":
            process.wait()  # its stage lives on; the next attempt has to get along with it
        elif self._goes_on(process, victim):
            self.say(f"  {moment.stage}, {moment.name}: {way}, too late")
            return False
        elif self.project.processes():
            self.report.failures.append(f"hang: {way} at {moment.stage}, {moment.name}: {self.project.processes()}")
            self._kill_group(process, signal.SIGKILL)
        process.wait()
        self.report.kills[moment.stage, moment.name] += 1
        self.report.ways[way] += 1
        harmed = None
        if way in {"SIGKILL to the group", "SIGKILL to the stage"} and self.rng.random() < 0.8:
            harmed = damage(self.rng, self.project, moment.stage)
        if harmed is not None:
            harmed.mark(self.logs)
            self.open.append(harmed)
            self.report.damages.append(harmed)
            self.harmed = harmed.kind.startswith("checkpoint")
        self.say(f"  {moment.stage}, {moment.name}: {way}" + (f"; then {harmed.kind}" if harmed else ""))
        return True

    def _goes_on(self, process: subprocess.Popen[bytes], victim: int, seconds: float = 60) -> bool:
        """Wait until all is quiet; whether DVC has gone on instead, or ended well, as after a stage that is done.

        While a stage runs, DVC leaves SIGINT to it. A stage that ends just then has done its work, and DVC
        begins the next one: it does so after no stage that failed.
        """
        deadline, seen = time.monotonic() + seconds, None
        while self.project.processes() and (now := time.monotonic()) < deadline:
            running = self.project.stage(process.pid)
            if running is not None and running[1] != victim and process.poll() is None:
                seen = seen or now
                if now - seen > _DYING_SECONDS:
                    return True
            time.sleep(0.02)
        return process.poll() == 0

    def _kill_group(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    # -- what a log and the work folder tell -----------------------------------------------------------------------

    def count_steps(self, log: str, began: float) -> None:
        """Compare the step an attempt began at with the last one made before. Every step leaves a preview."""
        previews = list(self.project.data.glob("work/distill/*-clp/*/frames/[!.]*.png"))
        made = [int(p.stem) for p in previews if p.stat().st_mtime >= began]
        found = re.search(r"continuing at step (\d+) of", log)
        if found or made:
            first = int(found[1]) if found else 0
            if self.reached is not None:
                self._repeated(self.reached - first)
            self.reached = max(made, default=first)
        if not previews:  # dropped, since the distilled set is whole
            self.reached = None
        self.excused, self.harmed = self.excused or self.harmed, False

    def _repeated(self, steps: int) -> None:
        if steps < 0:
            self.report.failures.append(f"continued {-steps} steps beyond what was seen")
        elif steps > CHECKPOINT_STEPS and not self.excused:
            self.report.failures.append(f"{steps} steps repeated, though checkpoints lie {CHECKPOINT_STEPS} apart")
        if not self.excused:
            self.report.repeated.append(steps)
        self.excused = False
