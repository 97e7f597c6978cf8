"""Does the classification hold for whatever a provider, a proxy or an attacker may send?"""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from activities.providers.classification import MAX_RETRY_AFTER, Lost, Reply, lost, readable_id, refused, retry_after
from activities.providers.interface import ProviderFailure
from durable_agents.domain.failures import Billed, FailureKind

UNHURRIED = settings(deadline=None)
"""A busy machine is no finding."""

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
_JSON: st.SearchStrategy[JsonValue] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_ERRORS = st.fixed_dictionaries(
    {},
    optional={"error": _JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("type", "code", "details", "message"), _JSON))},
)
_HEADERS = st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry"]), st.text())


@UNHURRIED
@given(status=st.integers(100, 999), body=_JSON | _ERRORS, headers=_HEADERS)
def test_whatever_is_sent_becomes_one_classified_line(status: int, body: JsonValue, headers: dict[str, str]) -> None:
    """An exception while classifying an exception would end the run as a bug of ours."""
    failure = refused(Reply("openai", status, headers, ""), body, now=NOW)
    assert failure.failure.message.isprintable()
    assert len(failure.failure.message) < 500
    assert failure.retry_after is None or timedelta(0) <= failure.retry_after <= MAX_RETRY_AFTER


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        ("Fri, 20 Nov 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Fri, 20 Nov 2026 12:00:30 -0000", timedelta(seconds=30)),
        ("Fri, 20 Nov 2026 13:01:00 +0100", timedelta(minutes=1)),
        ("Fri, 20 Nov 2026 11:59:59 GMT", None),
        ("Sat, 20 Nov 2027 12:00:00 GMT", MAX_RETRY_AFTER),
        ("Fri, 99 Nov 2026 12:00:30 GMT", None),
        ("Fri, 20 Nov 99999999999999999999 12:00:30 GMT", None),
        ("Fri, 20 Nov 2026 12:00:30 +99999999999999999999", None),
        ("2.5", timedelta(seconds=2.5)),
        (" 3 ", timedelta(seconds=3)),
        ("1e3", None),
        ("nan", None),
        ("inf", None),
        ("1_000", None),
        ("9" * 400, MAX_RETRY_AFTER),
        ("", None),
    ],
)
def test_a_wait_is_read_in_every_form_it_is_sent_in(said: str, wait: timedelta | None) -> None:
    """RFC 9110 allows seconds and dates; proxies invent the rest."""
    assert retry_after({"retry-after": said}, now=NOW) == wait


@pytest.mark.parametrize(
    ("how", "kind", "billed"),
    [
        (Lost.NOT_SENT, FailureKind.UNREACHABLE, Billed.NO),
        (Lost.NOT_SENDABLE, FailureKind.BAD_REQUEST, Billed.NO),
        (Lost.CUT, FailureKind.PROVIDER_TIMEOUT, Billed.UNKNOWN),
        (Lost.TIMED_OUT, FailureKind.PROVIDER_TIMEOUT, Billed.UNKNOWN),
        (Lost.TOO_LARGE, FailureKind.BAD_RESPONSE, Billed.UNKNOWN),
        (Lost.ENCODED, FailureKind.BAD_RESPONSE, Billed.UNKNOWN),
    ],
)
def test_only_what_was_never_sent_is_free(how: Lost, kind: FailureKind, billed: Billed) -> None:
    """Once bytes have left, nobody here knows what the provider did with them."""
    failure = lost("anthropic", how)
    assert (failure.failure.kind, failure.billed) == (kind, billed)


def test_every_way_to_lose_a_response_is_classified() -> None:
    """A new member without a row would raise KeyError in the middle of an outage."""
    assert all(isinstance(lost("openai", how), ProviderFailure) for how in Lost)


@pytest.mark.parametrize("candidate", ["", "sk-ant-secret", "a b", "x" * 129, "\x1b[2J", None, 7, {"a": 1}])
def test_what_is_no_request_id_is_not_repeated(candidate: JsonValue) -> None:
    """Headers are written by whoever answers; the message is read in terminals and in the Web UI."""
    assert readable_id(candidate) == ""
    assert readable_id(candidate, "req_1") == "req_1"


def test_a_name_that_is_none_is_not_repeated() -> None:
    """A gateway that echoes the key as the error's code must not get it into history."""
    body: JsonValue = {"error": {"type": "SK-ANT-key", "code": "sk-ant-api03-key", "details": {"error_code": "a\nb"}}}
    assert refused(Reply("openai", 500, {}, ""), body, now=NOW).failure.message == "openai answered 500"
