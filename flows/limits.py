"""Prefect's global concurrency limits: so many stages at once on the GPUs of all workers together."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

__all__ = ["Log", "ensure_limit", "slot_of"]

Log = logging.Logger | logging.LoggerAdapter[Any]


@contextlib.contextmanager
def slot_of(name: str | None, say: Log) -> Iterator[None]:
    """Hold one slot of the named concurrency limit; its lease ends by itself a minute after a holder's death."""
    if name is None:
        yield
        return
    asked = time.monotonic()
    with concurrency(name, occupy=1, lease_duration=60, strict=True, raise_on_lease_renewal_failure=False):
        say.info("holds a slot of %s after %.0f s", name, time.monotonic() - asked)
        yield


def ensure_limit(name: str, slots: int = 1) -> None:
    """Create the global concurrency limit ``name`` with ``slots`` slots unless it exists."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
