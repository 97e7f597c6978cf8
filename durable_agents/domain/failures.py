"""In which ways can a run's steps fail, and what is the one right answer to each?

One enum, one table. Activities classify (by type, status or code; by message text only where a provider gives nothing
else); workflows look the answer up.
"""

from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple

from durable_agents.domain.canonical import Words
from durable_agents.domain.compact import Compact


class FailureClass(StrEnum):
    """The four classes that decide who must react."""

    TRANSIENT = "transient"  # waiting helps
    MODEL = "model"  # telling the model helps
    LOGIC = "logic"  # changing the agent, its input or its budget helps
    PERMANENT = "permanent"  # only an operator helps


class Billed(StrEnum):
    """Could the failed attempt have been billed?"""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class FailureKind(StrEnum):
    """Every way a step can fail."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    PROVIDER_ERROR = "provider_error"
    PROVIDER_TIMEOUT = "provider_timeout"
    UNREACHABLE = "unreachable"
    CONFLICT = "conflict"
    BAD_RESPONSE = "bad_response"
    OUT_OF_MONEY = "out_of_money"
    UNAUTHORIZED = "unauthorized"
    BAD_REQUEST = "bad_request"
    REQUEST_TOO_LARGE = "request_too_large"
    CONTEXT_TOO_LONG = "context_too_long"
    TRUNCATED = "truncated"
    REFUSED = "refused"
    EMPTY_ANSWER = "empty_answer"
    TOO_MANY_CALLS = "too_many_calls"
    OUTPUT_INVALID = "output_invalid"
    TOO_MANY_REPAIRS = "too_many_repairs"
    LOOP = "loop"
    ALLOWANCE_EXCEEDED = "allowance_exceeded"
    ACCOUNT_LIMIT = "account_limit"
    UNKNOWN_AGENT = "unknown_agent"
    UNKNOWN_MODEL = "unknown_model"
    NO_PRICE = "no_price"
    NO_KEY = "no_key"
    INVALID_AGENT = "invalid_agent"
    INVALID_INPUT = "invalid_input"
    BUDGET_ABOVE_AGENT = "budget_above_agent"
    KEY_REUSED = "key_reused"
    SHED = "shed"
    CONSENT_MISMATCH = "consent_mismatch"
    INTERNAL = "internal"


class Answer(NamedTuple):
    """What to do about a failure of one kind."""

    failure_class: FailureClass
    billed: Billed = Billed.NO
    retry_here: bool = False
    """Try the same call again, at most 3 physical tries, after the provider's wait or exponential backoff."""
    next_model: bool = False
    """Go on with the next model of the agent's chain, at a turn boundary."""
    breaker: bool = False
    """Counts against the provider's circuit breaker."""
    told_to_model: str = ""
    """What the model reads about it; empty: nothing."""


_TRANSIENT, _MODEL, _LOGIC, _PERMANENT = FailureClass
_CUT_OFF = "Your last answer was cut off at its length limit and nothing of it was done. Answer shorter."
_EMPTY = "Your last answer was empty. Answer, or call a tool."
_TOO_MANY = "Your last answer had {detail}, and nothing of it was done. Ask again in several steps."
_CIRCLES = "You have made the same calls with the same results several times: {detail}. Do something else, or finish."
_UNFIT = "Your last answer does not fit the required JSON schema: {detail}. Answer with that JSON only."

ANSWERS: dict[FailureKind, Answer] = {
    FailureKind.RATE_LIMITED: Answer(_TRANSIENT, retry_here=True, next_model=True),
    FailureKind.OVERLOADED: Answer(_TRANSIENT, retry_here=True, next_model=True, breaker=True),
    FailureKind.PROVIDER_ERROR: Answer(_TRANSIENT, Billed.UNKNOWN, retry_here=True, next_model=True, breaker=True),
    FailureKind.PROVIDER_TIMEOUT: Answer(_TRANSIENT, Billed.UNKNOWN, retry_here=True, next_model=True, breaker=True),
    FailureKind.UNREACHABLE: Answer(_TRANSIENT, retry_here=True, next_model=True, breaker=True),
    FailureKind.CONFLICT: Answer(_TRANSIENT, retry_here=True, next_model=True),
    FailureKind.BAD_RESPONSE: Answer(_TRANSIENT, Billed.UNKNOWN, retry_here=True, next_model=True, breaker=True),
    FailureKind.OUT_OF_MONEY: Answer(_PERMANENT, next_model=True),
    FailureKind.UNAUTHORIZED: Answer(_PERMANENT, next_model=True, breaker=True),
    FailureKind.NO_KEY: Answer(_PERMANENT, next_model=True),
    FailureKind.BAD_REQUEST: Answer(_LOGIC, next_model=True),
    FailureKind.REQUEST_TOO_LARGE: Answer(_LOGIC, next_model=True),
    FailureKind.CONTEXT_TOO_LONG: Answer(_LOGIC, next_model=True),
    FailureKind.TRUNCATED: Answer(_MODEL, Billed.YES, told_to_model=_CUT_OFF),
    FailureKind.REFUSED: Answer(_MODEL, Billed.YES),
    FailureKind.EMPTY_ANSWER: Answer(_MODEL, Billed.YES, told_to_model=_EMPTY),
    FailureKind.TOO_MANY_CALLS: Answer(_MODEL, Billed.YES, told_to_model=_TOO_MANY),
    FailureKind.OUTPUT_INVALID: Answer(_MODEL, Billed.YES, told_to_model=_UNFIT),
    FailureKind.TOO_MANY_REPAIRS: Answer(_MODEL, next_model=True),
    FailureKind.LOOP: Answer(_LOGIC, told_to_model=_CIRCLES),
    FailureKind.ALLOWANCE_EXCEEDED: Answer(_LOGIC),
    FailureKind.ACCOUNT_LIMIT: Answer(_LOGIC),
    FailureKind.UNKNOWN_AGENT: Answer(_LOGIC),
    FailureKind.UNKNOWN_MODEL: Answer(_LOGIC),
    FailureKind.NO_PRICE: Answer(_LOGIC),
    FailureKind.INVALID_AGENT: Answer(_LOGIC),
    FailureKind.INVALID_INPUT: Answer(_LOGIC),
    FailureKind.BUDGET_ABOVE_AGENT: Answer(_LOGIC),
    FailureKind.KEY_REUSED: Answer(_LOGIC),
    FailureKind.SHED: Answer(_TRANSIENT),
    FailureKind.CONSENT_MISMATCH: Answer(_PERMANENT),
    FailureKind.INTERNAL: Answer(_PERMANENT, Billed.UNKNOWN),
}


MEANINGS: dict[FailureKind, str] = {
    FailureKind.RATE_LIMITED: "The provider asks for fewer requests or tokens a minute; nothing was processed.",
    FailureKind.OVERLOADED: "The provider has no capacity left for anybody right now.",
    FailureKind.PROVIDER_ERROR: "The provider, or a proxy before it, failed with a server error.",
    FailureKind.PROVIDER_TIMEOUT: "The request was sent, and no complete answer came back (in time).",
    FailureKind.UNREACHABLE: "No connection to the provider came about (name, network, TLS, proxy), so nothing was sent.",
    FailureKind.CONFLICT: "The provider is busy with something that excludes this request.",
    FailureKind.BAD_RESPONSE: "What came back is no complete answer: HTML, broken JSON, too large, or without a stop reason.",
    FailureKind.OUT_OF_MONEY: "The account at the provider has no credit left, or has reached its spend limit.",
    FailureKind.UNAUTHORIZED: "The provider does not accept the API key, or the key may not do this.",
    FailureKind.BAD_REQUEST: "The provider refuses the request as such: a retired model, an invalid schema, a wrong address.",
    FailureKind.REQUEST_TOO_LARGE: "The request has more bytes than the provider takes.",
    FailureKind.CONTEXT_TOO_LONG: "The conversation has more tokens than the model's context holds.",
    FailureKind.TRUNCATED: "The answer was cut off at its length limit; none of its tool calls was run.",
    FailureKind.REFUSED: "The model, or the provider's content filter, declined to answer.",
    FailureKind.EMPTY_ANSWER: "The model answered with neither text nor a tool call.",
    FailureKind.TOO_MANY_CALLS: "The model asked for more tool calls at once than are made of one answer; none of them was.",
    FailureKind.OUTPUT_INVALID: "The final answer does not fit the agent's output schema.",
    FailureKind.TOO_MANY_REPAIRS: "The model was told about its own failure as often as it may be, and failed again.",
    FailureKind.LOOP: "The run goes round in circles: the same calls with the same results, again and again.",
    FailureKind.ALLOWANCE_EXCEEDED: "The next try could cost more than what is left of the run's budget, so it was not started.",
    FailureKind.ACCOUNT_LIMIT: "A limit above the run (of its user, agent, tenant, or everything) has no room for the next try.",
    FailureKind.UNKNOWN_AGENT: "No folder of agents on this worker holds an agent of this name.",
    FailureKind.UNKNOWN_MODEL: "The agent names a model that the price list does not know.",
    FailureKind.NO_PRICE: "The run has a money limit, and a model of its chain has no price to hold it against.",
    FailureKind.NO_KEY: "This worker has no API key for the model's provider.",
    FailureKind.INVALID_AGENT: "The agent's folder does not make an agent; the message names file and line.",
    FailureKind.INVALID_INPUT: "The run's input does not fit the agent's input schema.",
    FailureKind.BUDGET_ABOVE_AGENT: "The run asks for a larger budget than its agent allows.",
    FailureKind.KEY_REUSED: "The idempotency key was used before, for a different call.",
    FailureKind.SHED: "A low-priority run was not let in, because its provider has no room; its key is free for another start.",
    FailureKind.CONSENT_MISMATCH: "What would be executed is not what was approved.",
    FailureKind.INTERNAL: "A bug of ours, or an error nobody has classified yet.",
}
"""What each kind says has happened, in one sentence, for `docs/failures.md` and whoever reads a failed run."""


class Failure(Compact):
    """A classified failure. `message` is one line for people: cause and remedy, no secrets, no untrusted control characters."""

    kind: FailureKind
    message: Words
    retry_after: timedelta | None = None
    """When what failed should be tried again by who asked for it; None: nobody knows, or it makes no difference."""

    @property
    def answer(self) -> Answer:
        """What to do about it."""
        return ANSWERS[self.kind]


def correction(failure: Failure) -> str:
    """What the model is told about its own failure, ready to append to the conversation; empty: it is not told."""
    return failure.answer.told_to_model.replace("{detail}", failure.message)


FIRST_DELAY, LONGEST_BACKOFF, LONGEST_SPREAD = timedelta(seconds=1), timedelta(seconds=8), timedelta(seconds=10)


def retry_delay(attempt: int, server_wait: timedelta | None, chance: float) -> timedelta:
    """How long after its `attempt`-th failure (from 1) a request is tried again.

    Doubled each time, not less than what the server asked for, and spread by `chance` in [0, 1): callers that failed together
    would else come back together (Google SRE book, chapter 22).
    """
    backoff = min(FIRST_DELAY * (1 << min(max(attempt, 1) - 1, 10)), LONGEST_BACKOFF)
    least = max(backoff, server_wait or backoff)
    return least + chance * min(least / 2, LONGEST_SPREAD)
