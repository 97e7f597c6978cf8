"""Which kind of failure is it when a provider refuses, breaks or falls silent, and what follows from its own words about it?

Pure: a status, an error object, headers and the time go in, a classified failure comes out. The rows are tested one by one in
`tests/activities/test_provider_failures.py`, through both SDKs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum

from pydantic import JsonValue

from activities.providers.interface import ProviderFailure
from durable_agents.domain.failures import Billed, Failure, FailureKind
from durable_agents.domain.model_calls import Provider

MAX_RETRY_AFTER = timedelta(minutes=10)
"""The longest wait a provider may impose. A hostile or broken header must not park a run for days; a limit that really lasts
longer answers the next try with the same wait, and the run's next model is the better way out."""

_NAME = re.compile(r"[a-z][a-z0-9_.]{0,63}")
"""Error types and codes are lower snake case; whatever is not, a key echoed by a broken gateway for one, is not repeated."""
_REQUEST_ID = re.compile(r"(?!sk-)[A-Za-z0-9_.:-]{1,128}")
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")

_MONEY = FailureKind.OUT_OF_MONEY
_DECISIVE: dict[str, FailureKind] = {
    "insufficient_quota": _MONEY,
    "credit_balance_exhausted": _MONEY,
    "billing_error": _MONEY,
    "billing_hard_limit_reached": _MONEY,
    "billing_not_active": _MONEY,
    "linked_organization_billing_unavailable": _MONEY,
    "context_length_exceeded": FailureKind.CONTEXT_TOO_LONG,
    "prompt_too_long": FailureKind.CONTEXT_TOO_LONG,
    "request_too_large": FailureKind.REQUEST_TOO_LARGE,
    "request_body_too_large_after_decoding": FailureKind.REQUEST_TOO_LARGE,
    "overloaded_error": FailureKind.OVERLOADED,
    "slow_down": FailureKind.OVERLOADED,
    "server_is_overloaded": FailureKind.OVERLOADED,
}
"""Names that say more than any status."""
_MONEY_ENDINGS = ("_spend_limit_reached", "_spend_limit_exceeded")

_BY_STATUS: dict[int, FailureKind] = {
    401: FailureKind.UNAUTHORIZED,
    402: _MONEY,
    403: FailureKind.UNAUTHORIZED,
    408: FailureKind.PROVIDER_TIMEOUT,
    409: FailureKind.CONFLICT,
    413: FailureKind.REQUEST_TOO_LARGE,
    429: FailureKind.RATE_LIMITED,
    499: FailureKind.PROVIDER_TIMEOUT,
    529: FailureKind.OVERLOADED,
}

_IN_A_SUCCESS: dict[str, FailureKind] = {
    "rate_limit_error": FailureKind.RATE_LIMITED,
    "rate_limit_exceeded": FailureKind.RATE_LIMITED,
    "timeout_error": FailureKind.PROVIDER_TIMEOUT,
    "api_error": FailureKind.PROVIDER_ERROR,
    "server_error": FailureKind.PROVIDER_ERROR,
    "conflict_error": FailureKind.CONFLICT,
    "authentication_error": FailureKind.UNAUTHORIZED,
    "permission_error": FailureKind.UNAUTHORIZED,
    "not_found_error": FailureKind.BAD_REQUEST,
    "invalid_request_error": FailureKind.BAD_REQUEST,
    "invalid_prompt": FailureKind.BAD_REQUEST,
    "data_residency_mismatch": FailureKind.BAD_REQUEST,
    "bio_policy": FailureKind.REFUSED,
    "misalignment_policy_violation": FailureKind.REFUSED,
}
"""What an error object means where the status claims success."""

_ONLY_IN_WORDS: tuple[tuple[str, FailureKind], ...] = (
    ("prompt is too long", FailureKind.CONTEXT_TOO_LONG),
    ("your credit balance is too low", _MONEY),
    ("you have reached your specified api usage limits", _MONEY),
)
"""Anthropic gives these three no code: status 400, type `invalid_request_error`, and a sentence. Only there words are read."""

_REMEDIES: dict[FailureKind, str] = {
    FailureKind.OUT_OF_MONEY: "add credit or raise the spend limit at the provider",
    FailureKind.UNAUTHORIZED: "check the API key and what it may do",
    FailureKind.UNREACHABLE: "check the base URL, the network and the proxy settings",
    FailureKind.BAD_REQUEST: "check the model's name and the tools' schemas",
    FailureKind.REQUEST_TOO_LARGE: "send less: shorter input or smaller tool results",
    FailureKind.CONTEXT_TOO_LONG: "send less: a shorter conversation or a model with a larger context",
}


class Lost(StrEnum):
    """How an exchange can end without a response that could be read."""

    NOT_SENT = "no connection: nothing was sent"
    NOT_SENDABLE = "the request is not valid HTTP: nothing was sent"
    CUT = "the connection was lost before the answer was complete"
    TIMED_OUT = "no complete answer in time"
    TOO_LARGE = "the answer is larger than any answer"
    ENCODED = "the answer is compressed, which was not asked for"


_LOST: dict[Lost, FailureKind] = {
    Lost.NOT_SENT: FailureKind.UNREACHABLE,
    Lost.NOT_SENDABLE: FailureKind.BAD_REQUEST,
    Lost.CUT: FailureKind.PROVIDER_TIMEOUT,
    Lost.TIMED_OUT: FailureKind.PROVIDER_TIMEOUT,
    Lost.TOO_LARGE: FailureKind.BAD_RESPONSE,
    Lost.ENCODED: FailureKind.BAD_RESPONSE,
}


@dataclass(frozen=True)
class Reply:
    """What is known of a response besides its body: who sent it, its status, its headers (lower case) and its request id."""

    provider: Provider
    status: int
    headers: Mapping[str, str]
    request_id: str

    @property
    def claims_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300


def lost(provider: Provider, how: Lost) -> ProviderFailure:
    """The failure of an exchange that brought no response."""
    return ProviderFailure(_failure(_LOST[how], f"{provider}: {how}"))


def unusable(reply: Reply, problem: str) -> ProviderFailure:
    """The failure of a response that claims success and is none. `problem` is ours, never the body's text."""
    return ProviderFailure(_failure(FailureKind.BAD_RESPONSE, f"{_said(reply, ())}: {problem}"))


def refused(reply: Reply, body: JsonValue, *, now: datetime) -> ProviderFailure:
    """The failure that an error response is. `body` is its decoded JSON, None if it has none."""
    names = _names(body)
    kind = _kind(reply, names, body)
    return ProviderFailure(
        _failure(kind, _said(reply, names)),
        retry_after=retry_after(reply.headers, now=now),
        billed=_billed(reply.status),
        final=reply.headers.get("x-should-retry") == "false" or _never_changes(reply.status),
    )


def readable_id(*candidates: JsonValue) -> str:
    """The first candidate that looks like a request id; empty if none does."""
    return next((text for text in candidates if isinstance(text, str) and _REQUEST_ID.fullmatch(text)), "")


def retry_after(headers: Mapping[str, str], *, now: datetime) -> timedelta | None:
    """The wait a provider asks for (milliseconds, seconds or an HTTP date), at most `MAX_RETRY_AFTER`. None if it is nonsense."""
    if _SECONDS.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return _capped(float(milliseconds) / 1000)
    said = headers.get("retry-after", "").strip()
    return _capped(float(said)) if _SECONDS.fullmatch(said) else _until(said, now)


def _until(date: str, now: datetime) -> timedelta | None:
    try:
        when = parsedate_to_datetime(date)
    except (ValueError, OverflowError):  # a year or a zone of twenty digits overflows a C integer
        return None
    aware = when if when.tzinfo else when.replace(tzinfo=UTC)
    return _capped((aware - now).total_seconds()) if aware > now else None


def _capped(seconds: float) -> timedelta:
    return timedelta(seconds=min(seconds, MAX_RETRY_AFTER.total_seconds()))


def _kind(reply: Reply, names: Sequence[str], body: JsonValue) -> FailureKind:
    decisive = next((kind for name in names if (kind := _decisive(name))), None)
    if decisive:
        return decisive
    if reply.claims_success:
        return next((_IN_A_SUCCESS[name] for name in names if name in _IN_A_SUCCESS), FailureKind.BAD_RESPONSE)
    if reply.status == 400 and set(names) == {"invalid_request_error"}:
        return _by_words(body)
    return _by_status(reply.status)


def _decisive(name: str) -> FailureKind | None:
    return _MONEY if name.endswith(_MONEY_ENDINGS) else _DECISIVE.get(name)


def _by_status(status: int) -> FailureKind:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status < 400:
        return FailureKind.BAD_RESPONSE
    return FailureKind.BAD_REQUEST if status < 500 else FailureKind.PROVIDER_ERROR


def _by_words(body: JsonValue) -> FailureKind:
    said = _error(body).get("message")
    words = said.casefold() if isinstance(said, str) else ""
    return next((kind for beginning, kind in _ONLY_IN_WORDS if words.startswith(beginning)), FailureKind.BAD_REQUEST)


def _billed(status: int) -> Billed | None:
    """None: what the kind says. An error inside a success may come after the work; a redirect certainly comes before it."""
    if 200 <= status < 300:
        return Billed.UNKNOWN
    return Billed.NO if status < 400 else None


def _never_changes(status: int) -> bool:
    """A redirect is a wrong base URL, and 501 says that there is no such thing."""
    return 300 <= status < 400 or status == 501


def _names(body: JsonValue) -> tuple[str, ...]:
    """The error's codes, then its type: the more specific first."""
    error = _error(body)
    details = error.get("details")
    inner = details.get("error_code") if isinstance(details, dict) else None
    said = (inner, error.get("code"), error.get("type"))
    return tuple(dict.fromkeys(name for name in said if isinstance(name, str) and _NAME.fullmatch(name)))


def _error(body: JsonValue) -> dict[str, JsonValue]:
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _said(reply: Reply, names: Sequence[str]) -> str:
    named = f" {'/'.join(names)}" if names else ""
    request = f" (request {reply.request_id})" if reply.request_id else ""
    return f"{reply.provider} answered {reply.status}{named}{request}"


def _failure(kind: FailureKind, said: str) -> Failure:
    remedy = _REMEDIES.get(kind)
    return Failure(kind=kind, message=f"{said}; {remedy}" if remedy else said)
