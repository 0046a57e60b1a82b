"""The reference of the Python interface: directives for mkdocstrings, one a public name."""

from __future__ import annotations

import clpdd
from clpdd.config.domains import Section

__all__ = ["api_reference"]

# What a setting means stands in the reference of the settings; here it is enough that the class exists.
_BARE = "    options:\n      members: false\n      show_bases: false\n"


def api_reference() -> str:
    """Every name of ``clpdd.__all__``: what does things first, then the settings."""
    does, sets = [], []
    for name in sorted(clpdd.__all__, key=str.lower):
        value = getattr(clpdd, name)
        directive = f"::: {value.__module__}.{value.__qualname__}\n"
        if isinstance(value, type) and issubclass(value, Section):
            sets.append(directive + _BARE)
        else:
            does.append(directive)
    about = "Their fields, ranges and meanings: [settings](settings.md).\n"
    return "\n".join(["## Work\n", *does, "## Settings\n", about, *sets])
