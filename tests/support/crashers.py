"""How does a test start a worker that will die, or freeze, at a chosen point?"""

import asyncio
import os
import sys
from pathlib import Path

from tests.support.world import AGENTS, World

CRASHER = Path(__file__).parent / "crashing_worker.py"


async def start_crasher(
    world: World, point: str, queue: str, model: str, crash_signal: str = "SIGKILL"
) -> asyncio.subprocess.Process:
    """A real worker process that sends itself the signal at `point#n`."""
    environment = {
        **os.environ,
        "CRASH_AT": point,
        "CRASH_SIGNAL": crash_signal,
        "TEMPORAL_ADDRESS": world.endpoints.temporal_address,
        "DATABASE_URL": world.database.app,
        "ANTHROPIC_API_KEY": "test-key",
        "ANTHROPIC_BASE_URL": model,
        "SHOP_URL": world.shop_url,
        "DURABLE_AGENTS_TASK_QUEUE": queue,
        "DURABLE_AGENTS_AGENTS_PATH": str(AGENTS),
        "DURABLE_AGENTS_GRACEFUL_SHUTDOWN": "1s",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, str(CRASHER), env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
