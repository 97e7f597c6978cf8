"""How does a test start a worker that will die, or freeze, at a chosen point?"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.world import AGENTS, World

CRASHER = Path(__file__).parent / "crashing_worker.py"


@dataclass
class Crasher:
    """A worker process that will send itself a signal."""

    pid: int
    ended: asyncio.Future[int]

    async def wait(self) -> int:
        """Its exit code, negative for a signal, once it is gone."""
        return await asyncio.shield(self.ended)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still lives."""
        if not self.ended.done():
            os.kill(self.pid, number)


@dataclass
class Crashers:
    """A process that has imported everything and forks workers."""

    process: asyncio.subprocess.Process
    started: dict[str, asyncio.Future[int]] = field(default_factory=dict)
    ended: dict[int, asyncio.Future[int]] = field(default_factory=dict)

    async def start(self, world: World, point: str, queue: str, model: str, crash_signal: str = "SIGKILL") -> Crasher:
        """A real worker that sends itself the signal at `point#n`."""
        name, loop = uuid.uuid4().hex, asyncio.get_running_loop()
        self.started[name] = loop.create_future()
        environment = {
            "NAME": name,
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
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(environment) + "\n").encode())
        pid = await self.started[name]
        return Crasher(pid, self.ended.setdefault(pid, loop.create_future()))

    async def listen(self) -> None:
        """Hear which workers began and which are gone."""
        assert self.process.stdout is not None
        loop = asyncio.get_running_loop()
        async for line in self.process.stdout:
            said = json.loads(line)
            if "name" in said:
                self.started[said["name"]].set_result(said["pid"])
            else:
                self.ended.setdefault(said["pid"], loop.create_future()).set_result(said["code"])


@contextlib.asynccontextmanager
async def open_crashers() -> AsyncIterator[Crashers]:
    """The forking process; whoever it forked and still lives is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CRASHER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    crashers = Crashers(process)
    listening = asyncio.create_task(crashers.listen())
    try:
        yield crashers
    finally:
        for pid, ended in crashers.ended.items():
            if not ended.done():
                os.kill(pid, signal.SIGKILL)
        process.kill()
        await process.wait()
        await listening
