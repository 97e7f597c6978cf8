"""How does one HTTP request to a provider stay one, bounded in time and size, and how did it end if no response came?"""

from collections.abc import AsyncIterator
from datetime import timedelta

import httpx2

from activities.providers.classification import Lost
from activities.providers.interface import MAX_RESPONSE_BYTES

CONNECT_SECONDS = 5.0
"""A provider's front door answers in well under a second; DNS and TLS included, five are generous."""


class Interrupted(Exception):  # noqa: N818 - says what happened to the exchange
    """The exchange ended without a response."""

    def __init__(self, how: Lost) -> None:
        super().__init__(how)
        self.how = how


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends in `Interrupted` once it is longer than any answer."""

    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > MAX_RESPONSE_BYTES:
                raise Interrupted(Lost.TOO_LARGE)
            yield chunk

    async def aclose(self) -> None:
        """Close the body that is read."""
        await self._stream.aclose()


async def _bound(response: httpx2.Response) -> None:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Interrupted(Lost.ENCODED)
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _Bounded(response.stream)


def bounded(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """An SDK's HTTP client that follows no redirect and reads at most `MAX_RESPONSE_BYTES` of any response, errors included.

    Compression is declined, and refused if it comes nevertheless: a few kilobytes can unpack to gigabytes.
    """
    client.follow_redirects = False
    client.headers["accept-encoding"] = "identity"
    client.event_hooks = {"response": [_bound]}
    return client


def timeouts(total: timedelta) -> httpx2.Timeout:
    """Per-read timeouts that never fire before the total does, which `exchange` watches; connecting has its own."""
    seconds = total.total_seconds()
    connect = min(CONNECT_SECONDS, seconds)
    return httpx2.Timeout(seconds, connect=connect, pool=connect)


def interruption(error: Exception) -> Interrupted:
    """What an SDK's connection error means, from the transport exception behind it, never from a text."""
    return Interrupted(_how(error.__cause__))


def _how(cause: BaseException | None) -> Lost:
    match cause:
        case Interrupted():
            return cause.how
        case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.PoolTimeout() | httpx2.ProxyError():
            return Lost.NOT_SENT
        case httpx2.UnsupportedProtocol():
            return Lost.NOT_SENT
        case httpx2.LocalProtocolError():
            return Lost.NOT_SENDABLE
        case httpx2.TimeoutException():
            return Lost.TIMED_OUT
        case _:  # read and write errors, and whatever the SDK adds: it may have been sent
            return Lost.CUT


def checked_key(api_key: str, variable: str) -> str:
    """The key, if it can stand in a header. Raises ValueError with one line that does not show it."""
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ValueError(f"{variable} is empty or holds a space, a line break or a character no key has; set it again")
    return api_key
