"""How is a program of ours run as a child: until when is it waited for, where do its words go, and how does it end?"""

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
"""The checkout, or the image: `worker.py` and the packages lie here."""
WORKER = (sys.executable, str(ROOT / "worker.py"))
WORKER_READY = "worker ready"
READY_WITHIN = timedelta(seconds=60)
LINE_LIMIT = 1024 * 1024  # a log line with a long traceback in it must not end the reading


class ChildEndedError(RuntimeError):
    """A child ended, or stayed silent, before it was ready; `str()` is one line with its last words."""


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        name: what people call it.
        command: program and arguments.
        environment: all of the child's environment.
        ready: how the line begins with which it says that it is ready.
        hear: gets every line the child prints, on either stream.
        folder: the child's working folder, None for ours.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: str
    hear: Callable[[str], None]
    folder: Path | None = None


class Child:
    """A running program. It lives in a session of its own, so that a Ctrl-C in the terminal reaches us first."""

    def __init__(self, program: Program, process: asyncio.subprocess.Process) -> None:
        self._program = program
        self._process = process
        self._said = ""
        self._ready = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, program: Program) -> Self:
        """Start the program and wait until it is ready.

        Raises:
            ChildEndedError: it ended first, or was not ready within a minute.
        """
        process = await asyncio.create_subprocess_exec(
            *program.command,
            env=dict(program.environment),
            cwd=program.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_LIMIT,
            start_new_session=True,
        )
        child = cls(program, process)
        try:
            await child._wait_until_ready()
        except BaseException:  # a Ctrl-C while starting must not leave it behind either
            await child.kill()
            raise
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ready_line(self) -> str:
        """The line with which it said that it is ready."""
        line: str = self._ready.result()
        return line

    async def ended(self) -> int:
        """Wait until it ends by itself; its exit code, or minus the signal that ended it."""
        code = await self._process.wait()
        await asyncio.wait({self._listening})  # not awaited itself: whoever gives up waiting must not end the listening
        return code

    async def kill(self) -> None:
        """`kill -9`: it can do nothing about it."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.ended()

    async def stop(self, grace: timedelta, hurry: asyncio.Event | None = None) -> None:
        """Ask it to end and wait; `kill -9` when `grace` is over or `hurry` is set."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        ending = asyncio.create_task(self.ended())
        hurried = asyncio.create_task((hurry or asyncio.Event()).wait())
        try:
            await asyncio.wait({ending, hurried}, timeout=grace.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            if not ending.done():
                await self.kill()
            await ending

    async def _wait_until_ready(self) -> None:
        await asyncio.wait(
            {self._ready, self._listening}, timeout=READY_WITHIN.total_seconds(), return_when=asyncio.FIRST_COMPLETED
        )
        if self._ready.done():
            return
        last = self._said.removeprefix("error: ") or "it said nothing"
        if not self._listening.done():
            raise ChildEndedError(f"the {self._program.name} was not ready within {READY_WITHIN.total_seconds():.0f} s ({last})")
        raise ChildEndedError(f"the {self._program.name} ended while starting ({last})")

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._said = line or self._said
            self._program.hear(line)
            if line.startswith(self._program.ready) and not self._ready.done():
                self._ready.set_result(line)
