"""Is this attempt still the one that may act?

The server gives an attempt up when it hears nothing for the heartbeat timeout, and starts another. A worker that was paused
does not notice; so an attempt holds a lease from its last heartbeat, and asks it before it sends anything.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity
from temporalio.exceptions import ApplicationError

INTERVAL = 1.0
"""Seconds between heartbeats; the timeout is four of them (`workflows/activity_options.py`)."""
LOST_AFTER = 3.0
"""Seconds without a heartbeat after which an attempt counts as given up, whatever it does later: less than the timeout."""
STALE_ATTEMPT = "stale_attempt"


class Lease:
    """Knows when the server last heard of this attempt."""

    def __init__(self) -> None:
        self._renewed = time.monotonic()
        self._lost = False

    def renew(self) -> None:
        """Tell the server that this attempt lives. It does not bring back one that was silent for too long."""
        self._lost = self._lost or self._silent_for() > LOST_AFTER
        activity.heartbeat()
        self._renewed = time.monotonic()

    def require(self) -> None:
        """Raise unless the server must still believe in this attempt."""
        if self._lost or self._silent_for() > 2 * INTERVAL:
            raise stale_attempt()

    def _silent_for(self) -> float:
        return time.monotonic() - self._renewed


def stale_attempt() -> ApplicationError:
    """The error of an attempt that was overtaken: whatever it does no longer counts."""
    return ApplicationError("another attempt has taken over", type=STALE_ATTEMPT)


def fence() -> int:
    """This attempt's place in the order of all attempts: when the server scheduled it, in microseconds."""
    return int(activity.info().current_attempt_scheduled_time.timestamp() * 1_000_000)


@asynccontextmanager
async def heartbeating() -> AsyncIterator[Lease]:
    """Heartbeat every second while the block runs."""
    lease = Lease()
    beating = asyncio.create_task(_beat(lease))
    try:
        yield lease
    finally:
        beating.cancel()


async def _beat(lease: Lease) -> None:
    while True:
        lease.renew()
        await asyncio.sleep(INTERVAL)
