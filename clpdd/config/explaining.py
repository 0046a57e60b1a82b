"""What pydantic found wrong with settings, in plain words: key, value, what is allowed, the nearest known key."""

from __future__ import annotations

import difflib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .reading import written

__all__ = ["explained"]

_YES = {"yes", "on", "y"}

_MOVED = {
    "cache.workers": "runtime.workers",
    "distill.checkpoint_every_seconds": "runtime.checkpoint_every_seconds",
    "distill.checkpoint_every_steps": "runtime.checkpoint_every_steps",
    "evaluate.random_draws": "distill.random_draws",
}
"""Keys of earlier versions, and where they went."""


def explained(
    error: ValidationError, section: type[BaseModel], source: str, values: Any = None, text: str | None = None
) -> str:
    """Every problem on a line of its own, below ``source``.

    Args:
        section: what was to be made.
        values, text: what it was to be made of, and the file they were read from: what is written there is shown.
    """
    problems = "\n".join(f"  {_explain(problem, section, values, text)}" for problem in error.errors())
    return f"{source} has settings that cannot be used:\n{problems}"


def _explain(problem: Any, section: type[BaseModel], values: Any, text: str | None) -> str:
    location = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        own = section.__name__.removesuffix("Settings").lower()
        whole = f"{own}.{key}" if own else key
        if location[0] == "variants":  # their fields are those of distill
            whole = ".".join(("distill", *map(str, location[2:])))
        if whole in _MOVED:
            return f"{key}: moved to {_MOVED[whole]}; set it there"
        known = _known_keys(section, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if text is not None and (quoted := _unquoted(problem, location, values, text)):
        return f"{key}: {quoted}"
    message = problem["msg"].removeprefix("Value error, ")
    value = repr(problem["input"])
    got = f" (got {value if len(value) <= 60 else value[:57] + '...'})" if problem["type"] != "value_error" else ""
    told = message[0].lower() + message[1:] if message[:5] == "Input" else message
    return f"{key}: {told}{got}" if key else f"{told}{got}"  # what concerns several sections names them itself


def _known_keys(section: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        if isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields:
            section = section.model_fields[part].annotation
        elif get_origin(section) is dict:  # sections by names
            section = get_args(section)[1]
        else:
            return []
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def _unquoted(problem: Any, location: tuple[Any, ...], values: Any, text: str) -> str | None:
    """What to say of a word that needs quotes to be text, or of one that is no truth value; ``None`` of all else."""
    given = problem["input"]
    if problem["type"] == "string_type" and (given is None or isinstance(given, (bool, int, float))):
        found = written(text, values, location)
        if found is None:
            return None
        kind = "nothing" if given is None else "a truth value" if isinstance(given, bool) else "a number"
        return f'must be text, but {found or "an empty value"} is {kind}: put it in quotes, "{found}"'
    if problem["type"] == "bool_type" and str(given).lower() in {"yes", "no", "on", "off", "y", "n"}:
        return f"must be true or false, and {given} is text in YAML 1.2: write {str(given.lower() in _YES).lower()}"
    return None
