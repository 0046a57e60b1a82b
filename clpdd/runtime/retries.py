"""A model hub that does not answer is told once, not twice for every try."""

from __future__ import annotations

import logging
import re

__all__ = ["tell_retries_once"]

_LOGGER = "huggingface_hub.utils._http"  # says "... thrown while requesting URL", then "Retrying in 1s", for every try
_TRIED = re.compile(r"(?P<said>.*) thrown while requesting \w+ \w+://(?P<host>[^/]+)", re.DOTALL)


class _Once(logging.Filter):
    """Passes one line for each host; what is no retry passes as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(("Retrying in ", "Rate limited. Waiting ")):
            return False
        found = _TRIED.match(message)
        if found is None:
            return True
        host, said = found["host"], " ".join(found["said"].strip("'\"").split())
        if host in self._told:
            return False
        self._told.add(host)
        record.msg, record.args = "%s does not answer (%s): trying again for a while", (host, said[:80])
        return True


def tell_retries_once() -> None:
    """Let the hub's library say in one line that it tries again. Calling it again begins anew."""
    logger = logging.getLogger(_LOGGER)
    for known in [one for one in logger.filters if isinstance(one, _Once)]:
        logger.removeFilter(known)
    logger.addFilter(_Once())
