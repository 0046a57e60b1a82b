"""Errors meant for people: each says what was wrong, where, what is allowed and what to do.

The command line prints the message without a traceback and exits with the class's ``exit_code``.
Anything that is not a ``ClpddError`` is a defect of the program and keeps its traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

__all__ = [
    "ArtifactError",
    "BusyError",
    "ClpddError",
    "DataError",
    "NumericalError",
    "Preempted",
    "ResourceError",
    "SettingsError",
    "SingularError",
    "first_few",
    "first_line",
    "one_line",
    "remedied",
]


class ClpddError(Exception):
    """Base of every error the library raises on purpose."""

    exit_code = 1


class SettingsError(ClpddError):
    """A setting is unknown, of the wrong type, out of range, or impossible with another one."""

    exit_code = 2


class DataError(ClpddError):
    """The user's images, labels or tables cannot be used as they are."""

    exit_code = 3


class ArtifactError(ClpddError):
    """A file that a stage made (or a weights file) is missing, damaged, or of another kind than expected."""

    exit_code = 4


class ResourceError(ClpddError):
    """The machine refused: disk full, folder read-only, memory exhausted, device missing, another rank lost."""

    exit_code = 5


class NumericalError(ClpddError):
    """A computation left the finite numbers: NaN or infinite loss, singular kernel."""

    exit_code = 6


class SingularError(NumericalError):
    """A linear system has no unique solution."""


class BusyError(ClpddError):
    """Another run holds the same work folder."""

    exit_code = 7


class Preempted(ClpddError):
    """The run was asked to stop and has saved its state: start it again to go on (75 is EX_TEMPFAIL)."""

    exit_code = 75


def first_few(names: Sequence[str], most: int = 3) -> str:
    """The first ``most`` names, with dots where there are more."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank; the name of its type where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def one_line(error: BaseException, most: int = 300) -> str:
    """All that an error says, on one line of at most ``most`` characters; the name of its type where it says nothing.

    For errors whose first line says only that there are others, as torch's of weights that do not fit.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= most else text[: most - 3] + "...").rstrip(".")


@contextlib.contextmanager
def remedied(*, singular: str, infinite: str) -> Iterator[None]:
    """Say what to do about a ``NumericalError`` of the block: the mathematics that raises it knows no settings.

    Args:
        singular: the remedy where a system has no unique solution.
        infinite: the remedy where numbers are not finite.
    """
    try:
        yield
    except NumericalError as error:
        remedy = singular if isinstance(error, SingularError) else infinite
        raise type(error)(f"{error}: {remedy}") from error
