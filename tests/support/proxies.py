"""How does a connection to PostgreSQL break around exactly one COMMIT?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

_COMMIT = b"COMMIT;\x00"
"""As asyncpg sends it."""
_COMMITTED = b"COMMIT\x00"
"""As the server confirms it."""
_WAITING = (b"with moved as", b"update model_attempt")
"""The first statements of a hold and of a settlement that wait for whoever has done the same and not committed."""


class Cut(StrEnum):
    """When the client's connection ends."""

    UNHEARD = "before the server has heard of it"
    RACING = "while the server is at it"
    OVERTAKEN = "long before the server hears of it, which is when the next connection waits for it"
    ANSWERED = "before the client hears that it is done"


class CommitCutter:
    """Between clients and a server: `plan` says what happens to the next COMMITs; None lets one pass, as does an empty plan."""

    def __init__(self, host: str, port: int) -> None:
        self.plan: list[Cut | None] = []
        self.cuts = 0
        self._server = (host, port)
        self._next_waits = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        from_server, to_server = await asyncio.open_connection(*self._server)
        swallowing = asyncio.Event()
        both = [
            asyncio.create_task(self._up(reader, writer, to_server, swallowing)),
            asyncio.create_task(self._down(from_server, writer, swallowing)),
        ]
        self._tasks |= set(both)
        with contextlib.suppress(OSError):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in both:
            task.cancel()
        await asyncio.wait(both)
        self._tasks -= set(both)
        for end in (writer, to_server):
            end.transport.abort()

    async def _up(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        to_server: asyncio.StreamWriter,
        swallowing: asyncio.Event,
    ) -> None:
        while data := await reader.read(65536):
            if any(mark in data for mark in _WAITING):
                self._next_waits.set()
            cut = self.plan.pop(0) if _COMMIT in data and self.plan else None
            self.cuts += cut is not None
            match cut:
                case Cut.UNHEARD:
                    return
                case Cut.RACING:
                    to_server.write(data)
                    await to_server.drain()
                    return
                case Cut.OVERTAKEN:
                    self._next_waits.clear()
                    writer.transport.abort()
                    await self._next_waits.wait()
                    to_server.write(data)
                    await to_server.drain()
                    return
                case Cut.ANSWERED:
                    swallowing.set()
            to_server.write(data)
            await to_server.drain()

    async def _down(self, from_server: asyncio.StreamReader, writer: asyncio.StreamWriter, swallowing: asyncio.Event) -> None:
        while data := await from_server.read(65536):
            if swallowing.is_set() and _COMMITTED in data:
                return
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def commit_cutter(url: str) -> AsyncIterator[tuple[CommitCutter, str]]:
    """A proxy before the server of a URL, and the URL through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    cutter = CommitCutter(parts.hostname, parts.port)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield cutter, urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))
    finally:
        server.close()
