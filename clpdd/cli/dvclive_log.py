"""Readings of a running distillation through DVCLive, for those who watch: no artifact depends on them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from ..optimise.context import OnProgress

__all__ = ["live_log"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def live_log(folder: Path) -> Iterator[OnProgress | None]:
    """Yield a callback that logs to ``folder`` (``plots/metrics/*.tsv``), or ``None`` where DVCLive cannot run.

    A continued run logs its restored history again first, so the files always hold the whole curve.
    """
    try:
        from dvclive import Live

        live = Live(dir=str(folder), save_dvc_exp=False, dvcyaml=None, report=None)
    except Exception as error:  # the log is a convenience: whatever stops it must not stop the work
        log.info("no live log: %s", error)
        yield None
        return

    broken = False

    def note(step: int, readings: dict[str, float]) -> None:
        nonlocal broken
        if broken:
            return
        try:
            live.step = step
            for name, value in readings.items():
                live.log_metric(name, value)
            live.make_summary()
        except Exception as error:
            log.warning("the live log stops here: %s", error)
            broken = True

    try:
        yield note
    finally:
        try:
            live.end()
        except Exception as error:
            log.warning("the live log was not closed: %s", error)
