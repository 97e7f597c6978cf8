"""What does a run ask of a model, and what can come back?"""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from durable_agents.domain.compact import Compact
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import Digest, Micros, RunId, TenantId
from durable_agents.domain.prices import FRAMING_TOKENS_PER_MESSAGE, CallMaximum, Price, Usage, input_token_bound, maximum

Provider = Literal["anthropic", "openai"]

MAX_PHYSICAL_TRIES = 3
"""Requests to a provider per logical call, crashes included (Google SRE book, chapter 21)."""
MAX_REPAIRS = 2
"""How often a model is told about its own failure before the next model of the chain takes over, or the run ends."""
MAX_CALLS_PER_ANSWER = 32
"""Tool calls of one answer; of an answer with more none is made, and the model is told. (The server takes 2,000 open activities
of a run.)"""


class StopReason(StrEnum):
    """Why a model stopped, whichever provider says it."""

    DONE = "done"
    TOOL_CALLS = "tool_calls"
    MAX_TOKENS = "max_tokens"
    REFUSED = "refused"
    PAUSED = "paused"
    CONTEXT_FULL = "context_full"


class PinnedModel(BaseModel):
    """One model of an agent's chain as it was when the run was admitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    provider: Provider
    model: str
    max_tokens: int = Field(gt=0, le=1_000_000)
    timeout: timedelta
    price: Price | None
    """None only where the run has no money limit."""
    cache: timedelta | None = None
    """How long an answer to exactly the same request may be given again within the tenant; None: never."""


class ContextSize(BaseModel):
    """How large the next request to a model can be, kept by adding: bytes of everything, tokens as last counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bytes_total: int = 0
    messages_total: int = 0
    counted_by: int | None = None
    """Which model of the chain counted last; another model's tokens are other tokens."""
    counted_tokens: int = 0
    bytes_since: int = 0
    messages_since: int = 0

    def plus(self, size: int) -> "ContextSize":
        """With one more message of so many bytes."""
        return self.model_copy(
            update={
                "bytes_total": self.bytes_total + size,
                "messages_total": self.messages_total + 1,
                "bytes_since": self.bytes_since + size,
                "messages_since": self.messages_since + 1,
            }
        )

    def counted(self, model: int, tokens: int) -> "ContextSize":
        """With everything so far counted by a model: its input and its own answer."""
        return self.model_copy(update={"counted_by": model, "counted_tokens": tokens, "bytes_since": 0, "messages_since": 0})

    def bound(self, model: int) -> int:
        """The most input tokens the next call of this model can have."""
        if self.counted_by == model:
            return input_token_bound(self.counted_tokens, self.bytes_since, self.messages_since)
        return input_token_bound(0, self.bytes_total, self.messages_total)


def call_maximum(model: PinnedModel, index: int, context: ContextSize) -> CallMaximum:
    """The most that one physical call of this model can use now."""
    tokens = context.bound(index)
    if model.price is None:
        return CallMaximum(cost_micros=Micros(0), input_tokens=tokens, output_tokens=model.max_tokens)
    return maximum(model.price, tokens, model.max_tokens)


class ModelCallRequest(Compact):
    """Input of `call_model`: ids and numbers only, whatever the length of the conversation."""

    tenant: TenantId
    run_id: RunId
    call: int
    """Which logical model call of the run this is, from 1: the key of its journal row."""
    turn: int
    """The turn its answer becomes."""
    model: int
    """Which model of the pinned chain."""
    allowance_micros: Micros | None
    """The money left for all physical attempts of this call together; None is unlimited."""
    correction: str = ""
    """What the model is told first about its own last failure."""
    near_limit: bool = False
    """The budget runs out: the agent's file says what the model does without."""


class RequestedCall(BaseModel):
    """A tool call of an answer, as history shows it. The executor reads the arguments from the transcript."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    index: int
    tool: str
    arguments: dict[str, JsonValue] | None
    """None when they are larger than 1 KiB, or no JSON object."""


class ModelAnswer(Compact):
    """A finished answer, recorded in the transcript as the message of its turn."""

    kind: Literal["answer"] = "answer"
    stop: StopReason
    text: str
    """The beginning of its text."""
    calls: tuple[RequestedCall, ...]
    usage: Usage
    cost_micros: Micros
    unknown_micros: Micros = Micros(0)
    """Held for attempts of this call whose outcome is unknown."""
    overrun_micros: Micros = Micros(0)
    """What the provider counted beyond the call's maximum."""
    message_bytes: int
    head: str
    """The first 16 hex digits of the digest of its message in the transcript."""
    model: str
    output: JsonValue = None
    """The run's output when this answer ends it and is at most 16 KiB, else see `output_artifact`."""
    output_artifact: Digest | None = None
    cached_tokens: int | None = None
    """Present when the answer comes from our own cache and cost nothing: what the provider counted then."""
    accounts_used: int = 0
    """Percent of the account above the run that is nearest its limit; 0 when nothing was drawn for this call."""
    kept_micros: Micros = Micros(0)
    """What the run has drawn of its accounts and keeps for its next calls."""
    withheld_tokens: int = 0
    """The most that tools would have added which the policy in force kept from this call; the next may have them again."""
    problem: Failure | None = None
    """The answer is recorded, but it does not do: e.g. it does not fit the output schema."""

    @property
    def counted_tokens(self) -> int:
        """The most that this answer and everything before it count as input of the next call.

        As input the answer is written anew, so it is bounded like any other message; what was counted as output counts if that is
        more, e.g. with reasoning that is sent back.
        """
        if self.cached_tokens is not None:
            return self.cached_tokens + self.withheld_tokens
        again = self.message_bytes + FRAMING_TOKENS_PER_MESSAGE
        return self.usage.input_tokens + max(self.usage.output_tokens, again) + self.withheld_tokens


class ModelFailure(Compact):
    """No answer, and trying the same again is not for this activity."""

    kind: Literal["failure"] = "failure"
    failure: Failure
    usage: Usage | None = None
    """Present when the provider answered, and billed, something that cannot be used."""
    cost_micros: Micros = Micros(0)
    unknown_micros: Micros = Micros(0)
    overrun_micros: Micros = Micros(0)


ModelOutcome = Annotated[ModelAnswer | ModelFailure, Field(discriminator="kind")]
