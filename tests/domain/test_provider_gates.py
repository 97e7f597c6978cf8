"""Is a provider in trouble left alone, by all, and come back to slowly?"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_agents.domain import provider_gates
from durable_agents.domain.failures import ANSWERS, Failure, FailureKind, retry_delay
from durable_agents.domain.provider_gates import (
    BURST,
    LAST_TRY_GRACE,
    LATER,
    LATEST,
    LONGEST_LEASE,
    LONGEST_WAIT,
    PATIENCE,
    QUEUED,
    SLOW_START,
    SOONEST,
    TOLERATED_FAILURES,
    WINDOW,
    Asking,
    BreakerState,
    Crowd,
    Gate,
    GateId,
    Limits,
    Reason,
    Traffic,
    Wait,
    admit,
    fingerprint,
    out_of_patience,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
DOWN = Failure(kind=FailureKind.OVERLOADED, message="529")
LIMITED = Failure(kind=FailureKind.RATE_LIMITED, message="429")
FREE = Limits()


def asking(caller: str = "a", *, last_try: bool = False) -> Asking:
    """A call at the gate."""
    return Asking(caller, tokens=100, last_try=last_try, timeout=timedelta(minutes=5))


def failing(gate: Gate, times: int, *, sent: int | None = None, now: datetime = NOW) -> Gate:
    """The gate after failures; each was sent after the one before unless `sent` says how many were in all."""
    for n in range(times):
        gate = provider_gates.failed(gate, now, "x", DOWN, Traffic(n if sent is None else sent * n // times, 20.0))
    return gate


def opened() -> Gate:
    """A gate whose breaker has just opened."""
    return failing(Gate(), TOLERATED_FAILURES + 1)


def probing(caller: str = "p") -> tuple[Gate, datetime]:
    """A gate whose probe is under way, and when."""
    now = NOW + SECOND
    gate = admit(opened(), FREE, now, asking(caller))
    assert isinstance(gate, Gate)
    return gate, now


def test_the_breaker_opens_after_more_than_five_failures_in_a_row() -> None:
    """Three tries of one call must never open it, and a provider that is down must not be asked by every run."""
    assert failing(Gate(), 5).state(NOW) is BreakerState.CLOSED
    assert failing(Gate(), 6).state(NOW) is BreakerState.OPEN
    wait = admit(opened(), FREE, NOW, asking())
    assert wait == Wait(Reason.OPEN, SECOND)


@pytest.mark.parametrize("kind", FailureKind)
def test_only_failures_of_the_provider_count(kind: FailureKind) -> None:
    """A run's bad request says nothing about the provider; which kinds count stands in the one table of failures."""
    gate = Gate()
    for n in range(20):
        gate = provider_gates.failed(gate, NOW, "x", Failure(kind=kind, message="m"), Traffic(n, 1.0))
    assert (gate.state(NOW) is BreakerState.OPEN) == ANSWERS[kind].breaker


def test_an_answer_ends_the_streak_unless_its_request_is_older() -> None:
    """Answers take seconds and refusals none: what was asked before the trouble is still answered in the middle of it."""
    gate = failing(Gate(), TOLERATED_FAILURES)
    assert provider_gates.succeeded(gate, NOW, "x", NOW - SECOND) is gate
    assert provider_gates.succeeded(gate, NOW + SECOND, "x", NOW + SECOND).failures == 0


def test_a_few_failures_among_many_requests_do_not_open_it() -> None:
    """At twenty requests a second a few failures are six within seconds, long before the answers between them arrive."""
    assert failing(Gate(), 30, sent=600).state(NOW) is BreakerState.CLOSED
    assert failing(Gate(), 30, sent=40).state(NOW) is BreakerState.OPEN


def test_one_probe_at_a_time_and_its_answer_closes() -> None:
    """Two hundred waiting runs must not all try whether the provider is back."""
    gate, now = probing()
    assert gate.state(now) is BreakerState.HALF_OPEN
    assert admit(gate, FREE, now + 5 * SECOND, asking("other")) == Wait(Reason.PROBING, SECOND)
    assert provider_gates.succeeded(gate, now, "other", now) is gate
    closed = provider_gates.succeeded(gate, now, "p", now)
    assert (closed.state(now), closed.failures, closed.openings) == (BreakerState.CLOSED, 0, 0)
    assert admit(closed, FREE, now, asking("other")) is closed


def test_a_failed_probe_doubles_the_wait_up_to_a_cap() -> None:
    """A provider that is down for an hour is asked six times a minute, not sixty."""
    gate, now, waits = opened(), NOW, []
    for _ in range(7):
        assert gate.open_until is not None
        waits.append(gate.open_until - now)
        now = gate.open_until
        probe = admit(gate, FREE, now, asking("p"))
        assert isinstance(probe, Gate)
        gate = provider_gates.failed(probe, now, "p", DOWN, Traffic(0, 0.0))
    assert waits == [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]


def test_failures_of_requests_from_before_do_not_prolong_the_wait() -> None:
    """Two hundred requests in flight when it opens would push the first probe into the next century."""
    gate = opened()
    assert provider_gates.failed(gate, NOW, "x", DOWN, Traffic(0, 0.0)) is gate


def test_a_probe_that_is_refused_for_its_own_faults_closes_too() -> None:
    """Who can say 400 or 429 is up."""
    gate, now = probing()
    assert provider_gates.failed(gate, now, "p", LIMITED, Traffic(0, 0.0)).state(now) is BreakerState.CLOSED


def test_a_dead_probe_blocks_for_its_lease_and_its_own_call_not_at_all() -> None:
    """A kill -9 in the middle of a probe must not keep a provider shut for ever."""
    gate, now = probing()
    assert isinstance(admit(gate, FREE, now + LONGEST_LEASE - SECOND, asking("other")), Wait)
    assert isinstance(admit(gate, FREE, now + LONGEST_LEASE, asking("other")), Gate)
    assert isinstance(admit(gate, FREE, now + SECOND, asking("p")), Gate)


def test_a_call_with_one_try_left_lets_others_probe_first() -> None:
    """Its failure would end its call; somebody with tries to spare is there nearly always."""
    gate = opened()
    assert isinstance(admit(gate, FREE, NOW + SECOND, asking(last_try=True)), Wait)
    assert isinstance(admit(gate, FREE, NOW + SECOND + LAST_TRY_GRACE, asking(last_try=True)), Gate)


def test_a_pause_holds_everybody_and_is_never_shortened() -> None:
    """A Retry-After is meant for the key, not for the one request that met it."""
    gate = provider_gates.paused(Gate(), NOW, 30 * SECOND, Traffic(0, 5.0))
    assert admit(gate, FREE, NOW + 10 * SECOND, asking()) == Wait(Reason.PAUSED, 20 * SECOND)
    assert provider_gates.paused(gate, NOW, SECOND, Traffic(0, 5.0)) is gate
    assert admit(gate, FREE, NOW + 30 * SECOND, asking()) is gate
    assert gate.pace(NOW + 30 * SECOND) is not None


def test_an_operator_holds_what_is_healthy() -> None:
    """The way to take a model out of service while everything runs."""
    wait = admit(Gate(), Limits(forced_open=True), NOW, asking())
    assert isinstance(wait, Wait)
    assert wait.reason is Reason.FORCED


def test_the_pace_after_a_recovery_rises_to_less_than_half_above_steady() -> None:
    """Who waited comes all at once, and would bring the provider down again."""
    gate = provider_gates.closed(replace(opened(), steady_per_second=100.0), NOW)
    paces = [gate.pace(NOW + n * SECOND) for n in range(60)]
    assert paces[0] == pytest.approx(25.0)
    assert all(a is not None and b is not None and a <= b <= 150.0 for a, b in pairwise(paces))
    assert gate.pace(NOW + SLOW_START) is None


def test_trouble_during_a_recovery_does_not_make_its_slowness_normal() -> None:
    """Each relapse would else begin at a quarter of a quarter."""
    gate = provider_gates.closed(replace(opened(), steady_per_second=100.0), NOW)
    for n in range(TOLERATED_FAILURES + 1):
        gate = provider_gates.failed(gate, NOW + SECOND, "x", DOWN, Traffic(n, 3.0))
    assert gate.steady_per_second == 100.0
    paused = provider_gates.paused(Gate(), NOW, 60 * SECOND, Traffic(0, 50.0))
    assert provider_gates.paused(paused, NOW + SECOND, 60 * SECOND, Traffic(0, 1.0)).steady_per_second == 50.0


def test_patience_ends_at_its_time_or_as_soon_as_it_is_certain_to() -> None:
    """Nobody waits two minutes for a pause of ten; nobody gives up on a breaker that may close any second."""
    assert not out_of_patience(Wait(Reason.OPEN, 10 * SECOND), PATIENCE - SECOND, PATIENCE)
    assert out_of_patience(Wait(Reason.OPEN, SECOND), PATIENCE, PATIENCE)
    assert out_of_patience(Wait(Reason.PAUSED, 10 * 60 * SECOND), timedelta(0), PATIENCE)
    assert not out_of_patience(Wait(Reason.PAUSED, 30 * SECOND), timedelta(0), PATIENCE)
    kinds = {reason: provider_gates.busy(GateId("p", "m", "k"), Wait(reason, SECOND), PATIENCE).kind for reason in Reason}
    assert {reason for reason, kind in kinds.items() if kind is FailureKind.RATE_LIMITED} == {Reason.LIMIT, Reason.PAUSED}
    assert all(ANSWERS[kind].next_model for kind in kinds.values())


def test_a_key_is_known_by_twelve_digits_that_do_not_give_it_away() -> None:
    """They stand in a table that operators read."""
    assert fingerprint("sk-secret") == "746b4ad1ca91"
    assert fingerprint("a") != fingerprint("b")


@given(st.integers(1, 50), st.one_of(st.none(), st.floats(0, 600)), st.floats(0, 1, exclude_max=True))
def test_a_retry_waits_at_least_as_long_as_it_was_told_and_not_much_longer(
    attempt: int, told: float | None, chance: float
) -> None:
    """A server's wait is a minimum; the spread keeps those who failed together from coming back together."""
    wait = None if told is None else timedelta(seconds=told)
    later = retry_delay(attempt, wait, chance)
    assert later >= max(SECOND, wait or SECOND)
    assert later <= max(8 * SECOND, wait or SECOND) * 1.5
    assert later <= max(8 * SECOND, wait or SECOND) + 10 * SECOND


def test_retries_double_and_spread() -> None:
    """The first retries are quick, and no two workers agree on the moment."""
    assert [retry_delay(n, None, 0.0) for n in (1, 2, 3, 9)] == [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND]
    assert retry_delay(1, 30 * SECOND, 0.0) == 30 * SECOND
    assert len({retry_delay(1, 30 * SECOND, n / 10) for n in range(10)}) == 10


@given(st.integers(1, 10**7), st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 120), st.integers(0, 10**6))
def test_never_more_goes_back_than_was_taken_and_never_after_its_minute(
    limit: int, taken: int, used: int, seconds: float, more: int
) -> None:
    """Else limits would be what providers see only until the first answer comes."""
    limits, since = Limits(tokens_per_minute=limit), timedelta(seconds=seconds)
    draw = provider_gates.draws(Gate(), limits, NOW, taken)[1]
    back = provider_gates.given_back(limits, taken, used, since)
    assert draw is not None
    assert timedelta(0) <= back <= draw.cost
    assert back == timedelta(0) or (used < taken and since < WINDOW)
    assert provider_gates.given_back(limits, taken, used + more, since) <= back
    assert provider_gates.given_back(FREE, taken, used, since) == timedelta(0)


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 3000), st.floats(0, 1), st.floats(0, 80)), max_size=60))
def test_counting_what_was_used_no_minute_has_more_than_the_limit_and_what_was_under_way(
    calls: list[tuple[float, int, float, float]],
) -> None:
    """A bucket as the gate keeps it. Of each call: the gap to the one before, its most, the share it uses, how long it takes."""
    limits, due, now = Limits(tokens_per_minute=1000), 0.0, 0.0
    taken: list[tuple[float, int, int, float]] = []
    answers: list[tuple[float, float, int, int]] = []
    for gap, most, share, takes in calls:
        now += gap
        for at, sent, took, used in sorted(answer for answer in answers if answer[0] <= now):
            back = provider_gates.given_back(limits, took, used, timedelta(seconds=at - sent)).total_seconds()
            due = max(due - back, at) if due > at else due
        answers = [answer for answer in answers if answer[0] > now]
        draw = provider_gates.draws(Gate(), limits, NOW, most)[1]
        assert draw is not None
        if due <= now + draw.slack.total_seconds():
            due = max(due, now) + draw.cost.total_seconds()
            used = int(most * share)
            taken.append((now, most, used, now + takes))
            answers.append((now + takes, now, most, used))
    for begin, *_ in taken:
        inside = [(most, used) for at, most, used, _ in taken if begin <= at < begin + 60]
        under_way = sum(most - used for at, most, used, until in taken if at < begin <= until < at + 60)
        largest = max(most for most, _ in inside)
        assert sum(used for _, used in inside) <= max(1000, 900 + largest) + under_way + 1


BOTH = Limits(requests_per_minute=60, tokens_per_minute=1000)
NOBODY = Crowd(None, None, None)


@pytest.mark.parametrize(
    ("gate", "limits", "crowd", "wait"),
    [
        (Gate(), BOTH, NOBODY, None),
        (Gate(paused_until=NOW + 100 * SECOND), FREE, NOBODY, 100 * SECOND),
        (Gate(paused_until=NOW + SECOND), FREE, NOBODY, SOONEST),
        (Gate(paused_until=NOW + 3600 * SECOND), FREE, NOBODY, LATEST),
        (Gate(paused_until=NOW - SECOND), FREE, NOBODY, None),
        (opened(), FREE, NOBODY, LATER),
        (Gate(), BOTH, Crowd(NOW + BURST, NOW + BURST, None), None),
        (Gate(), BOTH, Crowd(NOW + BURST + 20 * SECOND, None, None), 20 * SECOND),
        (Gate(), BOTH, Crowd(None, NOW + BURST + 40 * SECOND, None), 40 * SECOND),
        (Gate(), FREE, Crowd(NOW + 60 * SECOND, NOW + 60 * SECOND, None), None),  # of limits that were cleared
        (Gate(), FREE, Crowd(None, None, NOW - QUEUED), None),
        (Gate(), FREE, Crowd(None, None, NOW - QUEUED + SECOND), LATER),
    ],
)
def test_there_is_no_room_where_nothing_may_leave_or_others_wait(
    gate: Gate, limits: Limits, crowd: Crowd, wait: timedelta | None
) -> None:
    """Low-priority runs are refused on it, so it must neither miss a provider in trouble nor invent one."""
    assert provider_gates.full(gate, limits, NOW, crowd) == wait


@given(st.floats(0, 10_000), st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_waiting_call_looks_again_within_fifteen_seconds(told: float, looks: int, chance: float) -> None:
    """An operator who has closed a breaker by hand is waiting too."""
    later = provider_gates.delay(timedelta(seconds=told), looks, chance)
    assert SECOND <= later <= 15 * SECOND
