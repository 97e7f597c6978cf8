"""Is a response that breaks off, never ends, or is no answer at all recognised, in bounded time and memory?

Real SDKs, real HTTP on loopback, byte by byte.
"""

import asyncio
import contextlib
import json
from datetime import timedelta

import pytest

from activities.providers.interface import MAX_RESPONSE_BYTES
from durable_agents.domain.failures import Billed
from durable_agents.domain.failures import FailureKind as K
from durable_agents.domain.model_calls import Provider
from tests.activities.provider_stub import Respond, client, endless, fail, head, raw, reply, request, reset, stub, text_body

PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")
both = pytest.mark.parametrize("provider", PROVIDERS)
IMPATIENT = timedelta(seconds=0.8)
"""Long enough for the request to arrive on a busy machine."""
HTML = b"<html><body><h1>Bad gateway</h1></body></html>"
GARBAGE: dict[str, tuple[Respond, K]] = {
    "HTML 502": (raw(502, HTML, "text/html"), K.PROVIDER_ERROR),
    "HTML 200": (raw(200, HTML, "text/html"), K.BAD_RESPONSE),
    "JSON called HTML": (raw(200, b"{}", "text/html"), K.BAD_RESPONSE),
    "nothing": (raw(200, b"", "application/json"), K.BAD_RESPONSE),
    "a list": (raw(200, b"[]", "application/json"), K.BAD_RESPONSE),
    "an empty object": (raw(200, b"{}", "application/json"), K.BAD_RESPONSE),
    "not UTF-8": (raw(200, b'{"a": "\xff\xfe"}', "application/json"), K.BAD_RESPONSE),
    "too deep": (raw(200, b"[" * 100_000, "application/json"), K.BAD_RESPONSE),
    "too long a number": (raw(200, b'{"a":' + b"9" * 5000 + b"}", "application/json"), K.BAD_RESPONSE),
    "compressed": (raw(200, b"\x1f\x8b", "application/json", {"content-encoding": "gzip"}), K.BAD_RESPONSE),
    "no HTTP": (reset(b"SSH-2.0-OpenSSH_9.2\r\n"), K.PROVIDER_TIMEOUT),
    "reset before": (reset(b""), K.PROVIDER_TIMEOUT),
    "reset amid": (reset(head(200, {"content-type": "application/json", "content-length": "100"}) + b'{"a"'), K.PROVIDER_TIMEOUT),
}


@both
@pytest.mark.parametrize("name", GARBAGE)
async def test_what_is_no_answer_is_never_taken_for_one_nor_for_free(provider: Provider, name: str) -> None:
    """A proxy's page and a cut connection look like nothing happened; the model may have worked and been billed."""
    respond, kind = GARBAGE[name]
    failure = await fail(provider, respond)
    assert (failure.failure.kind, failure.billed, failure.final) == (kind, Billed.UNKNOWN, False)
    assert failure.failure.message.isprintable()
    assert "html" not in failure.failure.message


@both
async def test_half_a_json_body_is_no_answer(provider: Provider) -> None:
    """Half an order executed is worse than none."""
    whole = json.dumps(text_body(provider, "Done.")).encode()
    failure = await fail(provider, raw(200, whole[: len(whole) // 2], "application/json"))
    assert (failure.failure.kind, failure.billed) == (K.BAD_RESPONSE, Billed.UNKNOWN)


@both
async def test_a_body_without_end_is_cut_at_the_cap(provider: Provider) -> None:
    """One worker serves many runs; one answer must not take its memory from all of them."""
    sent = 0

    async def count() -> None:
        nonlocal sent
        sent += 1

    failure = await fail(provider, endless(b" " * 2**20, count))
    assert (failure.failure.kind, failure.billed) == (K.BAD_RESPONSE, Billed.UNKNOWN)
    assert sent * 2**20 < MAX_RESPONSE_BYTES + 8 * 2**20, "no more than the cap and the sockets' buffers"


@both
async def test_a_large_error_body_is_capped_as_well(provider: Provider) -> None:
    """The SDKs read error bodies whole, on a path of their own."""
    failure = await fail(provider, raw(500, b"x" * (40 * 2**20), "text/plain"))
    assert failure.failure.kind is K.BAD_RESPONSE


@both
async def test_a_body_that_drips_ends_with_the_total_time(provider: Provider) -> None:
    """Every byte renews a read timeout, so without a total a dripping proxy holds an activity for ever."""
    never = asyncio.Event()

    async def drip() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(never.wait(), 0.02)

    failure = await fail(provider, endless(b" ", drip), total=IMPATIENT)
    assert (failure.failure.kind, failure.billed) == (K.PROVIDER_TIMEOUT, Billed.UNKNOWN)


@both
async def test_silence_ends_with_the_total_time(provider: Provider) -> None:
    """The request arrived and may be billed, whatever the client's patience."""
    heard, never = asyncio.Event(), asyncio.Event()

    async def silent(_: asyncio.StreamWriter) -> None:
        heard.set()
        await never.wait()

    failure = await fail(provider, silent, total=IMPATIENT)
    assert heard.is_set()
    assert (failure.failure.kind, failure.billed) == (K.PROVIDER_TIMEOUT, Billed.UNKNOWN)


@both
async def test_compression_is_declined(provider: Provider) -> None:
    """The cap counts bytes as they arrive; a few kilobytes could unpack to gigabytes behind it."""
    async with stub(reply(200, text_body(provider, "Hi."))) as server:
        model = client(provider, server.port)
        await model.complete(request(provider))
        await model.close()
    assert server.received[0].headers["accept-encoding"] == "identity"
