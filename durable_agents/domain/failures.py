"""In which ways can a run's steps fail, and what is the one right answer to each?

One enum, one table. Activities classify (by type, status or code, never by message text); workflows look the answer up.
"""

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


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
    OUTPUT_INVALID = "output_invalid"
    TOO_MANY_REPAIRS = "too_many_repairs"
    ALLOWANCE_EXCEEDED = "allowance_exceeded"
    UNKNOWN_AGENT = "unknown_agent"
    UNKNOWN_MODEL = "unknown_model"
    NO_PRICE = "no_price"
    NO_KEY = "no_key"
    INVALID_AGENT = "invalid_agent"
    INVALID_INPUT = "invalid_input"
    BUDGET_ABOVE_AGENT = "budget_above_agent"
    KEY_REUSED = "key_reused"
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
    FailureKind.OUTPUT_INVALID: Answer(_MODEL, Billed.YES, told_to_model=_UNFIT),
    FailureKind.TOO_MANY_REPAIRS: Answer(_MODEL, next_model=True),
    FailureKind.ALLOWANCE_EXCEEDED: Answer(_LOGIC),
    FailureKind.UNKNOWN_AGENT: Answer(_LOGIC),
    FailureKind.UNKNOWN_MODEL: Answer(_LOGIC),
    FailureKind.NO_PRICE: Answer(_LOGIC),
    FailureKind.INVALID_AGENT: Answer(_LOGIC),
    FailureKind.INVALID_INPUT: Answer(_LOGIC),
    FailureKind.BUDGET_ABOVE_AGENT: Answer(_LOGIC),
    FailureKind.KEY_REUSED: Answer(_LOGIC),
    FailureKind.CONSENT_MISMATCH: Answer(_PERMANENT),
    FailureKind.INTERNAL: Answer(_PERMANENT, Billed.UNKNOWN),
}


class Failure(BaseModel):
    """A classified failure. `message` is one line for people: cause and remedy, no secrets, no untrusted control characters."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: FailureKind
    message: str

    @property
    def answer(self) -> Answer:
        """What to do about it."""
        return ANSWERS[self.kind]


def correction(failure: Failure) -> str:
    """What the model is told about its own failure, ready to append to the conversation; empty: it is not told."""
    return failure.answer.told_to_model.replace("{detail}", failure.message)
