"""What does OpenAI's Responses API look like to the rest of the system? The only module that knows its SDK."""

from typing import cast

import httpx2
import openai
from openai.types.responses import ResponseInputParam, ToolParam

from activities.providers.exchange import exchange
from activities.providers.interface import ProviderAnswer, ProviderRequest
from activities.providers.openai_wire import messages_to_wire, parse_answer, reasons, tools_to_wire
from activities.providers.transport import bounded, checked_key, interruption, timeouts
from activities.providers.wire import wire_text


class OpenAIProvider:
    """OpenAI's Responses API, one HTTP request per call, nothing stored there. Implements `ModelProvider`."""

    def __init__(self, api_key: str, base_url: str | None = None) -> None:
        self._client = openai.AsyncOpenAI(
            api_key=checked_key(api_key, "OPENAI_API_KEY"),
            base_url=base_url,
            max_retries=0,  # retries are Temporal's
            http_client=bounded(openai.DefaultAsyncHttpxClient()),
        )

    async def complete(self, request: ProviderRequest) -> ProviderAnswer:
        """Send one request. Raises ProviderFailure for everything that is not a complete answer."""
        return await exchange(
            "openai", lambda: self._send(request), parse_answer, total=request.timeout, id_header="x-request-id"
        )

    async def _send(self, request: ProviderRequest) -> httpx2.Response:
        try:
            raw = await self._client.responses.with_raw_response.create(
                model=request.model,
                max_output_tokens=request.max_tokens,
                instructions=wire_text(request.system) or openai.omit,
                input=cast("ResponseInputParam", messages_to_wire(request.messages)),
                tools=cast("list[ToolParam]", tools_to_wire(request.tools)) or openai.omit,
                store=False,
                include=["reasoning.encrypted_content"] if reasons(request.model) else openai.omit,
                timeout=timeouts(request.timeout),
            )
        except openai.APIStatusError as error:
            return error.response
        except openai.APIConnectionError as error:
            raise interruption(error) from None
        return raw.http_response

    async def close(self) -> None:
        """Close the HTTP client."""
        await self._client.close()
