"""How does one request to a provider become one complete answer or one classified failure?"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import httpx2
from pydantic import JsonValue

from activities.providers.classification import Lost, Reply, lost, readable_id, refused, unusable
from activities.providers.interface import ProviderAnswer
from activities.providers.transport import Interrupted
from activities.providers.wire import WireAnswer
from durable_agents.domain.model_calls import Provider

Send = Callable[[], Awaitable[httpx2.Response]]
"""Sends exactly one request. Returns the response whatever its status; raises `Interrupted` if there is none."""
Parse = Callable[[dict[str, JsonValue]], WireAnswer]
"""Reads a success. Raises ValueError, with a text of ours, for a body that is not a complete answer."""


async def exchange(provider: Provider, send: Send, parse: Parse, *, total: timedelta, id_header: str) -> ProviderAnswer:
    """One request, one answer.

    Raises:
        ProviderFailure: there is no complete answer.
    """
    response = await _response(provider, send, total)
    body = _json(response)
    claimed = body.get("request_id") if isinstance(body, dict) else None
    request_id = readable_id(response.headers.get(id_header), claimed)
    reply = Reply(provider, response.status_code, response.headers, request_id)
    if not reply.claims_success or (isinstance(body, dict) and body.get("error")):
        raise refused(reply, body, now=datetime.now(UTC))
    if not isinstance(body, dict):
        raise unusable(reply, "its body is not a JSON object")
    try:
        answer = parse(body)
    except ValueError as error:
        raise unusable(reply, str(error)) from None
    return ProviderAnswer(answer.message, answer.stop, answer.usage, request_id, answer.model)


async def _response(provider: Provider, send: Send, total: timedelta) -> httpx2.Response:
    # `from None`: the SDK's exceptions carry the request, and with it the key
    try:
        async with asyncio.timeout(total.total_seconds()):
            return await send()
    except TimeoutError:
        raise lost(provider, Lost.TIMED_OUT) from None
    except Interrupted as interrupted:
        raise lost(provider, interrupted.how) from None


def _json(response: httpx2.Response) -> JsonValue:
    """The decoded body; None if it is not JSON. NaN passes: a price for a senseless usage is the caller's to set."""
    media_type = response.headers.get("content-type", "application/json").partition(";")[0]
    if not media_type.strip().lower().endswith("json"):
        return None
    try:
        body: JsonValue = json.loads(response.content)
    except (ValueError, RecursionError):
        return None
    return body
