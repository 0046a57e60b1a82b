"""A hub that does not answer is told of in one line."""

from __future__ import annotations

import logging

import pytest

from clpdd.runtime.retries import tell_retries_once

HUB = "huggingface_hub.utils._http"


def test_many_tries_are_one_line_for_each_host_and_all_else_passes(caplog: pytest.LogCaptureFixture) -> None:
    tell_retries_once()
    tell_retries_once()
    log = logging.getLogger(HUB)
    for attempt in range(1, 6):
        for host in ("huggingface.co", "cdn.example.org"):
            log.warning(f"'[Errno -2] Name or service not known' thrown while requesting HEAD https://{host}/timm/x")
            log.warning(f"Retrying in {attempt}s [Retry {attempt}/5].")
    log.warning("HTTP Error 503 thrown while requesting GET https://other.example.org/x")
    log.warning("Rate limited. Waiting 61.0s before retry [Retry 1/5].")
    log.warning("something else")
    assert [record.getMessage() for record in caplog.records] == [
        "huggingface.co does not answer ([Errno -2] Name or service not known): trying again for a while",
        "cdn.example.org does not answer ([Errno -2] Name or service not known): trying again for a while",
        "other.example.org does not answer (HTTP Error 503): trying again for a while",
        "something else",
    ]
    assert len(log.filters) == 1


def test_the_library_still_says_it_there_and_so() -> None:
    import inspect

    from huggingface_hub.utils import _http

    source = inspect.getsource(_http)
    assert _http.logger.name == HUB
    assert "thrown while requesting" in source
    assert "Retrying in " in source
