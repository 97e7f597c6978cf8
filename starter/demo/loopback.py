"""How do the demo's servers come up on this machine, and how do they misbehave on purpose?

`serve` is for tests: a server inside the running event loop, without signals, without waiting, gone when the block ends.
`run` is for a process of its own. Both listen on 127.0.0.1 only. `NoAnswer` and `Hold` are the two faults that an ordinary
response cannot express: closing the connection without a word, and hanging until somebody releases the request. `Faults`
lets a test order them over HTTP.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Never, cast

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HOST = "127.0.0.1"
GRACE = timedelta(seconds=1)
"""How long a request may go on once the server was told to stop; then it is cancelled."""
_ABORT = "durable_agents.abort_connection"


class NoAnswer(Response):
    """Closes the connection instead of answering: the client never learns whether its request had an effect."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Abort the transport, then wait until the server has seen it, or it would still send a 500."""
        cast("Callable[[], None]", scope["extensions"][_ABORT])()
        await _disconnected(receive)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Hold:
    """Requests that hang until they are released or their client is gone.

    `routes` gives a server `POST /release` (answers how many were freed) and `GET /hanging?at_least=N`, which itself waits
    until that many requests hang, so that a test can kill a worker in the middle of a call without guessing the moment.
    """

    def __init__(self) -> None:
        self._hanging = 0
        self._gate = asyncio.Event()
        self._changed = asyncio.Condition()

    async def until_released(self, request: Request) -> bool:
        """Wait; true if released, false if the client went away first. The request's body must have been read."""
        gate = self._gate
        await self._count(+1)
        released, gone = asyncio.ensure_future(gate.wait()), asyncio.ensure_future(_disconnected(request.receive))
        try:
            await asyncio.wait({released, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            released.cancel()
            gone.cancel()
            await self._count(-1)
        return gate.is_set()

    async def _count(self, change: int) -> None:
        async with self._changed:
            self._hanging += change
            self._changed.notify_all()

    async def _release(self, _: Request) -> Response:
        # A new gate for those who come later: a release frees who is waiting now and nobody else.
        gate, self._gate = self._gate, asyncio.Event()
        gate.set()
        return JSONResponse({"released": self._hanging})

    async def _show_hanging(self, request: Request) -> Response:
        at_least = int(request.query_params.get("at_least", "0"))
        async with self._changed:
            await self._changed.wait_for(lambda: self._hanging >= at_least)
            return JSONResponse({"hanging": self._hanging})

    def routes(self) -> list[Route]:
        """The two routes by which tests steer what hangs."""
        return [Route("/release", self._release, methods=["POST"]), Route("/hanging", self._show_hanging)]


class Fault(BaseModel):
    """How the next `times` requests to `path` go wrong; the path may hold `*`, as in `/orders/*`.

    `before_effect` is a status answered in place of the effect. `after_effect` is what becomes of the reply once the effect
    is committed: `drop` closes the connection, `hang` waits for `POST /release`, a status is answered instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: str
    times: Annotated[int, Field(ge=1)] = 1
    before_effect: Annotated[str, Field(pattern=r"^[45][0-9][0-9]$")] | None = None
    after_effect: Annotated[str, Field(pattern=r"^(drop|hang|[45][0-9][0-9])$")] | None = None


class Faults:
    """The faults an app was told to have: a middleware (`around`) and the routes `POST` and `DELETE /faults`."""

    def __init__(self) -> None:
        self._hold = Hold()
        self._pending: list[Fault] = []

    def routes(self) -> list[Route]:
        """The routes that order and forget faults, and those of `Hold`."""
        return [Route("/faults", self._order, methods=["POST", "DELETE"]), *self._hold.routes()]

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app as its callers see it through the next fault for the path they ask."""

        async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
            fault = self._take(scope["path"]) if scope["type"] == "http" else None
            if fault is None:
                await app(scope, receive, send)
            elif fault.before_effect:
                await _as_asked(fault.before_effect)(scope, receive, send)
            else:
                await self._after(fault.after_effect or "nothing", app, scope, receive, send)

        return faulty

    async def _after(self, fault: str, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        reply: list[Message] = []

        async def keep(message: Message) -> None:
            reply.append(message)

        await app(scope, receive, keep)
        if fault == "drop":
            await NoAnswer()(scope, receive, send)
        elif fault.isdecimal():
            await _as_asked(fault)(scope, receive, send)
        elif fault == "nothing" or await self._hold.until_released(Request(scope, receive)):
            for message in reply:
                await send(message)

    async def _order(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._pending.clear()
        else:
            try:
                self._pending.append(Fault.model_validate_json(await request.body()))
            except ValidationError as error:
                return JSONResponse({"error": "malformed", "message": one_line(error)}, 422)
        return JSONResponse({"pending": [fault.model_dump() for fault in self._pending]})

    def _take(self, path: str) -> Fault | None:
        for n, fault in enumerate(self._pending):
            if fnmatchcase(path, fault.path) and path not in {"/faults", "/release", "/hanging"}:
                left = fault.model_copy(update={"times": fault.times - 1})
                self._pending[n : n + 1] = [left] if left.times else []
                return fault
        return None


def _as_asked(status: str) -> Response:
    return JSONResponse({"error": "fault", "message": "as asked by POST /faults"}, int(status))


def one_line(error: ValidationError) -> str:
    """The first thing wrong with some input, as `where: what`."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"


class _DroppableConnection(H11Protocol):
    """uvicorn's own protocol, which also hands the app the means to abort the connection it is answering on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        super().connection_made(transport)
        app = self.app

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("extensions", {})[_ABORT] = transport.abort
            await app(scope, receive, send)

        self.app = with_abort


def _server(app: Starlette) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=_DroppableConnection,
            loop="asyncio",
            ws="none",
            log_config=None,
            log_level="critical",
            timeout_graceful_shutdown=int(GRACE.total_seconds()),
        )
    )


def _listen(port: int) -> socket.socket:
    # Listening before the loop runs: whoever reads the address may connect at once and is served a moment later.
    listener = socket.create_server((HOST, port), backlog=128)
    # Connections inherit it: without it, each further request on a kept connection waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


@contextlib.asynccontextmanager
async def serve(app: Starlette, port: int = 0) -> AsyncIterator[str]:
    """Serve the app inside this event loop for the length of the block; yields its base URL, port 0 takes a free port.

    On leaving, every connection is cut and every handler has ended, those that hang too. OSError if the port is taken.
    """
    listener = _listen(port)
    server = _server(app)
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    await server.on_tick(0)
    try:
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    finally:
        await _stop(server)


async def _stop(server: uvicorn.Server) -> None:
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    handlers = set(server.server_state.tasks)
    if handlers:
        _, stuck = await asyncio.wait(handlers, timeout=GRACE.total_seconds())
        for task in stuck:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
    await server.lifespan.shutdown()


def run(app: Starlette, port: int) -> None:
    """Serve the app as this process until SIGINT or SIGTERM; the first line printed is `listening on http://127.0.0.1:PORT`."""
    try:
        listener = _listen(port)
    except (OSError, OverflowError) as error:
        fail(f"port {port} on {HOST} cannot be used ({error}); choose another with --port, 0 takes a free one")
    print(f"listening on http://{HOST}:{listener.getsockname()[1]}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        _server(app).run(sockets=[listener])


def fail(message: str) -> Never:
    """End the process with one line for a person on standard error."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)
