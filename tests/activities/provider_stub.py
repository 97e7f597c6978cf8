"""What answers on loopback in a provider's place, byte by byte, so that every way an HTTP exchange can go wrong can be shown?"""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pydantic import JsonValue

from activities.providers.anthropic import AnthropicProvider
from activities.providers.interface import ModelProvider, ProviderAnswer, ProviderFailure, ProviderRequest
from activities.providers.openai import OpenAIProvider
from durable_agents.domain.messages import Message, TextBlock
from durable_agents.domain.model_calls import Provider
from durable_agents.domain.tools import ToolSpec

KEY = "sk-loopback-5eCr3T"
MODELS: dict[Provider, str] = {"anthropic": "claude-haiku-5-5", "openai": "gpt-6-luna"}
ID_HEADERS: dict[Provider, str] = {"anthropic": "request-id", "openai": "x-request-id"}
USER = Message(role="user", blocks=(TextBlock(text="Refund order A-1001."),))

Object = dict[str, JsonValue]


Respond = Callable[[asyncio.StreamWriter], Awaitable[None]]
"""Writes whatever it likes in answer to one request; the connection is closed afterwards."""


@dataclass
class Received:
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]


@dataclass
class Stub:
    """A loopback server with one scripted response for every request, and a record of the requests."""

    respond: Respond
    port: int = 0
    received: list[Received] = field(default_factory=list)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, one response."""
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(head[0].split()[1], headers, json.loads(body)))
            await self.respond(writer)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def stub(respond: Respond) -> AsyncIterator[Stub]:
    """The server, listening on a free port; connections still open at the end are cut."""
    it = Stub(respond)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.port = server.sockets[0].getsockname()[1]
    async with server:
        yield it
        for task in it.tasks:
            task.cancel()
        await asyncio.gather(*it.tasks)


def unused_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client(provider: Provider, port: int, key: str = KEY) -> ModelProvider:
    """The real provider on the real SDK, pointed at loopback."""
    if provider == "anthropic":
        return AnthropicProvider(key, f"http://127.0.0.1:{port}")
    return OpenAIProvider(key, f"http://127.0.0.1:{port}/v1")


def request(
    provider: Provider,
    *messages: Message,
    system: str = "",
    tools: tuple[ToolSpec, ...] = (),
    total: timedelta = timedelta(seconds=10),
) -> ProviderRequest:
    """A request of this provider's model."""
    return ProviderRequest(MODELS[provider], 256, system, messages or (USER,), tools, total)


async def ask(
    provider: Provider, respond: Respond, asked: ProviderRequest | None = None
) -> tuple[ProviderAnswer, dict[str, Any]]:
    """The answer to one request, and the request's body as it arrived."""
    async with stub(respond) as server, contextlib.AsyncExitStack() as stack:
        model = client(provider, server.port)
        stack.push_async_callback(model.close)
        answer = await model.complete(asked or request(provider))
        assert len(server.received) == 1
        return answer, server.received[0].body


async def fail(provider: Provider, respond: Respond, total: timedelta = timedelta(seconds=10)) -> ProviderFailure:
    """The failure that one request ends in. That it was one request is checked every time."""
    async with stub(respond) as server, contextlib.AsyncExitStack() as stack:
        model = client(provider, server.port)
        stack.push_async_callback(model.close)
        try:
            answer = await model.complete(request(provider, total=total))
        except ProviderFailure as failure:
            assert len(server.received) == 1
            return failure
        raise AssertionError(f"answered: {answer}")


def reply(status: int, body: JsonValue, headers: Mapping[str, str] | None = None) -> Respond:
    """A JSON response."""
    return raw(status, json.dumps(body).encode(), "application/json", headers)


def raw(status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> Respond:
    """A response of any bytes."""
    given = {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(status, given) + body)

    return respond


def reset(after: bytes) -> Respond:
    """Part of a response, then a TCP reset."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(after)
        await writer.drain()
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return respond


def endless(chunk: bytes, pause: Callable[[], Awaitable[None]]) -> Respond:
    """A body that never ends: a chunk, a pause, and again until nobody listens."""

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, {"content-type": "application/json", "transfer-encoding": "chunked"}))
        while not writer.is_closing():
            writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            await writer.drain()
            await pause()

    return respond


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The beginning of a response."""
    return _head(status, headers)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} X\r\nconnection: close\r\n{lines}\r\n".encode()


def error_body(provider: Provider, type_: str | None, code: str | None, message: str = "private words") -> Object:
    """An error in the provider's own shape."""
    if provider == "openai":
        return {"error": {"message": message, "type": type_, "code": code, "param": None}}
    details: JsonValue = {"error_code": code} if code else None
    return {"type": "error", "error": {"type": type_, "message": message, "details": details}}


def anthropic_body(*content: JsonValue, stop: JsonValue = "end_turn", **changes: JsonValue) -> Object:
    """A Messages answer."""
    usage: Object = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 2}
    body: Object = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-5-5-20260801"}
    return {**body, "content": [*content], "stop_reason": stop, "stop_sequence": None, "usage": usage, **changes}


def openai_body(*output: JsonValue, **changes: JsonValue) -> Object:
    """A Responses answer."""
    usage: Object = {
        "input_tokens": 15,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 20,
    }
    body: Object = {"id": "resp_1", "object": "response", "status": "completed", "error": None, "incomplete_details": None}
    return {**body, "model": "gpt-6-luna-2026-07-01", "output": [*output], "usage": usage, **changes}


def openai_text(text: str) -> Object:
    """An output message with one text."""
    part: Object = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "id": "m_1", "role": "assistant", "status": "completed", "content": [part]}


def text_body(provider: Provider, text: str, **changes: JsonValue) -> Object:
    """A whole answer that says `text`."""
    if provider == "anthropic":
        return anthropic_body({"type": "text", "text": text}, **changes)
    return openai_body(openai_text(text), **changes)


THINKING: Object = {"type": "thinking", "thinking": "Let me see.", "signature": "c2ln"}
REDACTED: Object = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
REASONING: Object = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "Z2VoZWlt"}


def call_body(provider: Provider, *calls: tuple[str, str, JsonValue], before: Object | None = None) -> Object:
    """An answer with tool calls: id, tool, arguments."""
    opening = [before] if before else []
    if provider == "anthropic":
        uses = [{"type": "tool_use", "id": id_, "name": tool, "input": given} for id_, tool, given in calls]
        return anthropic_body(*opening, *uses, stop="tool_use")
    items = [function_call(*call) for call in calls]
    return openai_body(*opening, *items)


def function_call(id_: str, tool: str, given: JsonValue) -> Object:
    """OpenAI's tool call; text as arguments is sent as it is."""
    arguments = given if isinstance(given, str) else json.dumps(given)
    return {"type": "function_call", "id": "fc_1", "call_id": id_, "name": tool, "arguments": arguments, "status": "completed"}
