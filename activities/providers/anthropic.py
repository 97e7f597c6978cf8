"""What does Anthropic's Messages API look like to the rest of the system? The only module that knows its SDK."""

from typing import cast

import anthropic
import httpx2
from anthropic.types import MessageParam, ToolParam

from activities.providers.anthropic_wire import messages_to_wire, parse_answer, tools_to_wire
from activities.providers.exchange import exchange
from activities.providers.interface import ProviderAnswer, ProviderRequest
from activities.providers.transport import bounded, checked_key, interruption, timeouts
from activities.providers.wire import wire_text


class AnthropicProvider:
    """Anthropic's Messages API, one HTTP request per call. Implements `ModelProvider`."""

    def __init__(self, api_key: str, base_url: str | None = None) -> None:
        self._client = anthropic.AsyncAnthropic(
            api_key=checked_key(api_key, "ANTHROPIC_API_KEY"),
            base_url=base_url,
            max_retries=0,  # retries are Temporal's
            http_client=bounded(anthropic.DefaultAsyncHttpxClient()),
            open_telemetry=False,  # the activity has its own span; two would count the tokens twice
        )

    async def complete(self, request: ProviderRequest) -> ProviderAnswer:
        """Send one request. Raises ProviderFailure for everything that is not a complete answer."""
        return await exchange(
            "anthropic", lambda: self._send(request), parse_answer, total=request.timeout, id_header="request-id"
        )

    async def _send(self, request: ProviderRequest) -> httpx2.Response:
        tools = cast("list[ToolParam]", tools_to_wire(request.tools))
        try:
            raw = await self._client.messages.with_raw_response.create(
                model=request.model,
                max_tokens=request.max_tokens,
                system=wire_text(request.system) or anthropic.omit,
                messages=cast("list[MessageParam]", messages_to_wire(request.messages)),
                tools=tools or anthropic.omit,
                # an agent with tools sends the same beginning again and again; a tenth of the price from the second time on
                cache_control={"type": "ephemeral"} if tools else anthropic.omit,
                timeout=timeouts(request.timeout),
            )
        except anthropic.APIStatusError as error:
            return error.response
        except anthropic.APIConnectionError as error:
            raise interruption(error) from None
        return raw.http_response

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._client.close()
