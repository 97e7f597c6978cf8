"""Does every way a provider can fail become the right kind, the right wait and an honest answer about money?

Real SDKs, real HTTP on loopback. The rows are those of docs/failures.md as providers show them.
"""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import NamedTuple

import pytest

from activities.providers.classification import MAX_RETRY_AFTER
from activities.providers.interface import ProviderFailure
from durable_agents.domain.failures import Billed, FailureKind
from durable_agents.domain.model_calls import Provider
from tests.activities.provider_stub import (
    ID_HEADERS,
    KEY,
    client,
    error_body,
    fail,
    reply,
    request,
    unused_port,
)

PROVIDERS: tuple[Provider, ...] = ("anthropic", "openai")
both = pytest.mark.parametrize("provider", PROVIDERS)


class Row(NamedTuple):
    """One row of the table: what the provider says, and what it means."""

    status: int
    type: str | None
    code: str | None
    kind: FailureKind
    billed: Billed = Billed.NO
    message: str = "private words"


K = FailureKind
ROWS = (
    Row(429, "rate_limit_error", None, K.RATE_LIMITED),
    Row(429, "requests", "rate_limit_exceeded", K.RATE_LIMITED),
    Row(429, "rate_limit_error", "ramp_limit_exceeded", K.RATE_LIMITED),
    Row(429, "insufficient_quota", "insufficient_quota", K.OUT_OF_MONEY),
    Row(429, "rate_limit_error", "credit_balance_exhausted", K.OUT_OF_MONEY),
    Row(429, "rate_limit_error", "enforced_spend_limit_reached", K.OUT_OF_MONEY),
    Row(429, "rate_limit_error", "contract_spend_limit_reached", K.OUT_OF_MONEY),
    Row(429, None, "project_spend_limit_exceeded", K.OUT_OF_MONEY),
    Row(400, "invalid_request_error", "workspace_spend_limit_reached", K.OUT_OF_MONEY),
    Row(400, "invalid_request_error", None, K.OUT_OF_MONEY, message="Your credit balance is too low to access the API."),
    Row(400, "invalid_request_error", None, K.OUT_OF_MONEY, message="You have reached your specified API usage limits."),
    Row(402, "billing_error", None, K.OUT_OF_MONEY),
    Row(402, None, None, K.OUT_OF_MONEY),
    Row(529, "overloaded_error", None, K.OVERLOADED),
    Row(529, None, None, K.OVERLOADED),
    Row(503, "server_error", "slow_down", K.OVERLOADED),
    Row(503, None, "server_is_overloaded", K.OVERLOADED),
    Row(500, "overloaded_error", None, K.OVERLOADED),
    Row(500, "api_error", None, K.PROVIDER_ERROR, Billed.UNKNOWN),
    Row(502, "api_error", None, K.PROVIDER_ERROR, Billed.UNKNOWN),
    Row(503, "api_error", None, K.PROVIDER_ERROR, Billed.UNKNOWN),
    Row(504, "timeout_error", None, K.PROVIDER_ERROR, Billed.UNKNOWN),
    Row(520, None, None, K.PROVIDER_ERROR, Billed.UNKNOWN),
    Row(408, "timeout_error", None, K.PROVIDER_TIMEOUT, Billed.UNKNOWN),
    Row(409, "conflict_error", None, K.CONFLICT),
    Row(400, "invalid_request_error", None, K.BAD_REQUEST),
    Row(400, "invalid_request_error", None, K.BAD_REQUEST, message="tools.0: the prompt is too long"),
    Row(404, "not_found_error", "model_not_found", K.BAD_REQUEST),
    Row(422, "invalid_request_error", None, K.BAD_REQUEST),
    Row(418, None, None, K.BAD_REQUEST),
    Row(401, "authentication_error", "invalid_api_key", K.UNAUTHORIZED, message=f"Incorrect API key provided: {KEY}"),
    Row(403, "permission_error", None, K.UNAUTHORIZED),
    Row(413, "request_too_large", None, K.REQUEST_TOO_LARGE),
    Row(413, None, None, K.REQUEST_TOO_LARGE),
    Row(400, "invalid_request_error", "context_length_exceeded", K.CONTEXT_TOO_LONG),
    Row(400, "invalid_request_error", None, K.CONTEXT_TOO_LONG, message="prompt is too long: 210000 tokens > 200000 maximum"),
    Row(307, None, None, K.BAD_RESPONSE),
    Row(200, "overloaded_error", None, K.OVERLOADED, Billed.UNKNOWN),
    Row(200, "rate_limit_error", None, K.RATE_LIMITED, Billed.UNKNOWN),
    Row(200, "server_error", "server_error", K.PROVIDER_ERROR, Billed.UNKNOWN),
    Row(200, None, "bio_policy", K.REFUSED, Billed.UNKNOWN),
    Row(200, "something_new", None, K.BAD_RESPONSE, Billed.UNKNOWN),
)


@both
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.status}-{row.code or row.type}-{row.kind}")
async def test_each_error_becomes_its_kind_in_one_request(provider: Provider, row: Row) -> None:
    """The kind decides what happens next, `billed` decides whose money it was; a hidden second request would double both."""
    body = error_body(provider, row.type, row.code, row.message)
    failure = await fail(provider, reply(row.status, body, {ID_HEADERS[provider]: "req_42", "location": "http://127.0.0.1:1/"}))
    assert (failure.failure.kind, failure.billed, failure.retry_after) == (row.kind, row.billed, None)
    assert failure.final == (row.status == 307)
    _assert_fit_for_history(failure, provider, row)


def _assert_fit_for_history(failure: ProviderFailure, provider: Provider, row: Row) -> None:
    message = failure.failure.message
    assert message.startswith(f"{provider} answered {row.status}")
    assert "(request req_42)" in message
    assert (row.code or row.type or "") in message
    assert message.isprintable()
    assert row.message not in message
    assert KEY not in message


@both
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "7"}, timedelta(seconds=7)),
        ({"retry-after": "0"}, timedelta(0)),
        ({"retry-after-ms": "1500", "retry-after": "9"}, timedelta(seconds=1.5)),
        ({"retry-after": "99999999999"}, MAX_RETRY_AFTER),
        ({"retry-after": format_datetime(datetime.now(UTC) + timedelta(days=9), usegmt=True)}, MAX_RETRY_AFTER),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
async def test_the_providers_wait_is_obeyed_within_reason(
    provider: Provider, headers: dict[str, str], wait: timedelta | None
) -> None:
    """Coming back too early prolongs the limit for everybody; a nonsense header must not park a run for a year."""
    failure = await fail(provider, reply(429, error_body(provider, "rate_limit_error", None), headers))
    assert failure.retry_after == wait


@both
@pytest.mark.parametrize(("said", "final"), [("false", True), ("true", False), ("", False)])
async def test_a_provider_that_says_not_to_retry_has_the_last_word(provider: Provider, said: str, final: bool) -> None:
    """It knows what the status does not say; trying on is how clients get blocked."""
    failure = await fail(provider, reply(500, error_body(provider, "api_error", None), {"x-should-retry": said}))
    assert failure.final is final


@both
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
async def test_a_connection_that_never_was_costs_nothing(provider: Provider, host: str) -> None:
    """Nothing was sent, so holding money for it would starve a run during an outage that costs nobody anything."""
    model = client(provider, unused_port())
    model._client.base_url = f"http://{host}:{unused_port()}/"  # type: ignore[attr-defined]
    with pytest.raises(ProviderFailure) as caught:
        await model.complete(request(provider))
    await model.close()
    assert (caught.value.failure.kind, caught.value.billed) == (K.UNREACHABLE, Billed.NO)
    assert str(caught.value) == f"{provider}: no connection: nothing was sent; {_REMEDY}"


_REMEDY = "check the base URL, the network and the proxy settings"


@both
@pytest.mark.parametrize("key", ["", "sk-a b", "sk-a\n", "sk-é", "sk-\x00"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(provider: Provider, key: str) -> None:
    """A line break from a secrets file otherwise surfaces as a protocol error that quotes the key."""
    with pytest.raises(ValueError, match="_API_KEY is empty or holds") as caught:
        client(provider, 1, key)
    assert "sk-" not in str(caught.value)


@both
async def test_no_exception_behind_a_failure_carries_the_key(provider: Provider) -> None:
    """Causes are serialised into history with the failure; the SDKs' own hold the request and its headers."""
    failure = await fail(provider, reply(401, error_body(provider, "authentication_error", None)))
    assert failure.__cause__ is None
    assert failure.__suppress_context__ or failure.__context__ is None
