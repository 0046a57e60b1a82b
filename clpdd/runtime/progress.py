"""How far a stage is, told on stderr: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from types import TracebackType
from typing import Self

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # a notebook without ipywidgets has lines in place of a bar
    from tqdm.auto import tqdm

__all__ = ["Progress"]

_WIDGETS = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
"""Whether bars are Jupyter's, which need no terminal."""

_FIRST, _LONGEST = 5.0, 60.0
"""Seconds to the first line of a log, and between lines at most: each pause is twice as long as the one before."""


class Progress:
    """Counts what is done. Use as a context manager.

    A notebook has a bar where ipywidgets is installed. A log (a file, a pipe, any other notebook's cell) gets nothing
    of what takes less than five seconds; then lines such as ``distill: 120 of 600 steps, loss 0.5310, 00:12 left``,
    ever further apart, up to a minute.

    Args:
        total: how many there are, >= 0.
        what: what is done.
        unit: one of them, as ``"step"``.
        done: how many are done already.
        show: ``False`` says nothing.
        even: whether all take about as long; else no time that is left is reckoned from those that are done.
    """

    def __init__(self, total: int, what: str, unit: str, done: int = 0, show: bool = True, even: bool = True) -> None:
        self.even = even
        self.total, self.what, self.unit, self.done = total, what, unit, done
        self.readings: dict[str, str] = {}
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=what,
            unit=unit,
            dynamic_ncols=True,
            bar_format=None if even else "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            disable=(False if _WIDGETS else None) if show else True,  # None: where stderr is no terminal
        )
        self._log = show and self._bar.disable
        self._before, self._begun, self._pause, self._told = done, time.monotonic(), _FIRST, False
        self._due = self._begun + self._pause

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if kind is None and self._told:
            self._say()

    def update(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count
        self._bar.update(count)
        self.beat()

    def beat(self) -> None:
        """Still at it, though no more are done: a line where one is due."""
        if self.done >= self.total or time.monotonic() < self._due:
            return
        if self._log:
            self._say()
            self._told = True
        else:
            self._bar.refresh()  # seconds that pass show that it lives
        self._pause = min(2 * self._pause, _LONGEST)
        self._due = time.monotonic() + self._pause

    def rename(self, what: str) -> None:
        """Something else is done now."""
        self.what = what
        self._bar.set_description(what)

    def read(self, **readings: str) -> None:
        """Readings to show beside the count."""
        self.readings = readings
        self._bar.set_postfix(readings, refresh=False)

    def _say(self) -> None:
        seconds = time.monotonic() - self._begun
        parts = [f"{self.done} of {self.total} {self.unit}s", *(f"{k} {v}" for k, v in self.readings.items())]
        if self.even and self.done > self._before and self.done < self.total:
            left = seconds / (self.done - self._before) * (self.total - self.done)
            parts.append(f"{tqdm.format_interval(left)} left")
        with contextlib.suppress(OSError, ValueError):  # a log that nobody takes any more must not stop the work
            print(f"{self.what}: {', '.join(parts)}", file=sys.stderr, flush=True)
