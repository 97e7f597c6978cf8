"""What does a model provider look like from the inside of an activity, whichever it is?"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from durable_agents.domain.failures import Billed, Failure
from durable_agents.domain.messages import Message
from durable_agents.domain.model_calls import StopReason
from durable_agents.domain.prices import Usage
from durable_agents.domain.tools import ToolSpec

MAX_RESPONSE_BYTES = 32 * 1024 * 1024
"""A provider's whole answer; more is a broken proxy or an attack."""


@dataclass(frozen=True)
class ProviderRequest:
    """One physical request, in neutral terms."""

    model: str
    max_tokens: int
    system: str
    messages: Sequence[Message]
    tools: Sequence[ToolSpec]
    timeout: timedelta
    """Total time for the whole answer, not per read."""


@dataclass(frozen=True)
class ProviderAnswer:
    """A complete answer. `usage` is None when the provider sent none, or one that cannot be."""

    message: Message
    stop: StopReason
    usage: Usage | None
    request_id: str
    model: str


class ProviderFailure(Exception):  # noqa: N818 - carries a Failure
    """A request that brought no usable answer, classified.

    `billed` is the kind's answer to "could it have been billed?" unless the circumstances say more.
    """

    def __init__(
        self, failure: Failure, *, retry_after: timedelta | None = None, billed: Billed | None = None, final: bool = False
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.retry_after = retry_after
        """The provider's own wait, as a minimum; already capped."""
        self.billed = failure.answer.billed if billed is None else billed
        self.final = final
        """The provider said not to try again (`x-should-retry: false`)."""


class ModelProvider(Protocol):
    """A provider's API. One per worker; `complete` sends exactly one HTTP request."""

    async def complete(self, request: ProviderRequest) -> ProviderAnswer:
        """Send one request. Raises ProviderFailure for everything that is not a complete answer."""
        ...

    async def close(self) -> None:
        """Close the HTTP client."""
        ...
