"""How does a test wait for something to become true? By looking again, until a deadline."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from durable_agents import Approval, RunHandle
from durable_agents.errors import NoWorker

T = TypeVar("T")
LOOK_AGAIN = 0.03
PATIENCE = 60.0


async def eventually(probe: Callable[[], Awaitable[T | None]], *, within: float = PATIENCE) -> T:
    """The first truthy answer of `probe`; TimeoutError when there is none in time."""
    tick = asyncio.Event()
    async with asyncio.timeout(within):
        while True:
            try:
                if found := await probe():
                    return found
            except NoWorker:  # a worker may be starting; the deadline decides
                pass
            asyncio.get_running_loop().call_later(LOOK_AGAIN, tick.set)
            await tick.wait()
            tick.clear()


async def pending(run: RunHandle, count: int = 1) -> tuple[Approval, ...]:
    """The open approvals of a run, once there are that many."""

    async def probe() -> tuple[Approval, ...] | None:
        approvals = await run.pending_approvals()
        return approvals if len(approvals) >= count else None

    return await eventually(probe)
