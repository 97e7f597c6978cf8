"""May a request to a model leave now, given what all workers together have seen of its provider?

Pure: the gate as it was read and the database's clock go in, a verdict and the gate as it must become go out. The breaker is
closed, open until a time, or half-open while one call, the probe, tries whether the provider is back.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from durable_agents.domain.failures import Failure, FailureKind
from durable_agents.domain.identifiers import TenantId

SYSTEM_TENANT = TenantId("*")
"""Whose the gates are: nobody's. No tenant can have this name, which begins with a letter or a digit."""

PATIENCE = timedelta(minutes=2)
"""How long a call waits before the run's next model takes over, unless its agent's file says otherwise: an outage of a minute and
the recovery after it, or two minutes' worth of a limit; beyond that who waits for the run is better off with another model."""
TOLERATED_FAILURES = 5
"""The breaker opens after more than so many failures in a row, as Temporal's own for outbound calls does."""
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=1), timedelta(seconds=10)
"""How long an opened breaker stays open: doubled at each failed probe. Six probes a minute are no load for any provider."""
LAST_TRY_GRACE = timedelta(seconds=5)
"""A call with one try left probes only when for so long no other did: its failure would end the call."""
LONGEST_LEASE = timedelta(seconds=60)
"""A probe that is not heard of for so long is dead, or as good as that."""
SLOW_START = timedelta(minutes=2)
"""How long the pace is limited after a recovery: whoever waited through the outage is served, or has gone elsewhere, by then."""
FIRST_PACE, LAST_PACE, RAMP = 0.25, 1.2, timedelta(seconds=8)
"""From a quarter of what left per second before the trouble to a fifth above it: the peak stays below 1.5 × steady."""
LEAST_PACE = 2.0
"""Requests a second that are never too many."""
WINDOW = timedelta(minutes=1)
"""What limits are said for."""
SUSTAINED, BURST = 0.9, WINDOW * 0.1 / 0.9
"""Of a limit nine tenths flow evenly and one tenth (here as time at that flow) may come at once: never more in any minute."""
PACE_BURST = timedelta(seconds=1)
"""Calls look again after a second at the earliest: with no burst half of the pace would be lost between them."""
SHORTEST_DELAY, LONGEST_DELAY, LONGEST_UNKNOWN = timedelta(seconds=1), timedelta(seconds=10), timedelta(seconds=5)
"""Of a waiting call: it looks again at least every ten seconds or so, because an operator may have changed something."""
QUEUED = timedelta(seconds=15)
"""Who was turned away within so long waits still: it looks again at the latest then."""
SOONEST, LATER, LATEST = timedelta(seconds=5), timedelta(seconds=30), timedelta(minutes=10)
"""When a start that was refused should come again: within these bounds; `LATER` when nobody knows how long it takes."""
ZERO = timedelta(0)


class BreakerState(StrEnum):
    """What the breaker lets through: everything, nothing, one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Reason(StrEnum):
    """Why a request may not leave now."""

    FORCED = "an operator has opened its circuit breaker"
    PAUSED = "the provider asked for a pause"
    OPEN = "its circuit breaker is open after failures in a row"
    PROBING = "a single request is trying whether the provider is back"
    LIMIT = "the limit of requests or tokens a minute is reached"
    RECOVERING = "the provider has just come back and is asked more slowly at first"


class Wait(NamedTuple):
    """The request may not leave: why, and when to look again at the earliest."""

    reason: Reason
    length: timedelta


class GateId(NamedTuple):
    """Which gate: a provider's model as one key, known by its fingerprint, sees it."""

    provider: str
    model: str
    key: str


@dataclass(frozen=True)
class Gate:
    """What all workers together have seen."""

    failures: int = 0
    """In a row."""
    streak_since: datetime | None = None
    streak_from: int = 0
    """When the first of them came back, and how many requests had been sent by then."""
    openings: int = 0
    """Without a good probe between."""
    open_until: datetime | None = None
    """When the next probe may go; None: the breaker is closed."""
    probe: str | None = None
    probe_until: datetime | None = None
    """Which call is the probe, and for how long at most."""
    paused_until: datetime | None = None
    recovering_since: datetime | None = None
    steady_per_second: float = 0.0
    """Requests that left per second before the trouble."""

    def state(self, now: datetime) -> BreakerState:
        """What the breaker lets through."""
        if self.probe_until is not None and now < self.probe_until:
            return BreakerState.HALF_OPEN
        return BreakerState.CLOSED if self.open_until is None else BreakerState.OPEN

    def paused(self, now: datetime) -> timedelta:
        """How long the provider still wants to be left alone."""
        return max(ZERO, self.paused_until - now) if self.paused_until is not None else ZERO

    def pace(self, now: datetime) -> float | None:
        """Requests per second while the provider recovers; None: as many as come."""
        if self.recovering_since is None or not self.recovering_since <= now < self.recovering_since + SLOW_START:
            return None
        share = min(LAST_PACE, FIRST_PACE + (now - self.recovering_since) / RAMP)
        return max(LEAST_PACE, self.steady_per_second * share)


@dataclass(frozen=True)
class Limits:
    """What operators have said."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    forced_open: bool = False


class Traffic(NamedTuple):
    """What has left through a gate: requests in all, and per second at present."""

    sent: int
    per_second: float


class Crowd(NamedTuple):
    """Who is before a request that comes now: when its buckets are empty again, and when somebody was last made to wait."""

    requests_due: datetime | None
    tokens_due: datetime | None
    turned_away_at: datetime | None


class Asking(NamedTuple):
    """A call that wants to send a request, with the most it can use and the longest it can take."""

    caller: str
    tokens: int
    last_try: bool
    timeout: timedelta


class Draw(NamedTuple):
    """What a request takes from a bucket: it may when the bucket is empty again within `slack`, and then `cost` later."""

    cost: timedelta
    slack: timedelta


def fingerprint(key: str) -> str:
    """What a key is known by: it tells two keys apart and says nothing of either."""
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def admit(gate: Gate, limits: Limits, now: datetime, asking: Asking) -> Wait | Gate:
    """The gate with this request let through as far as breaker and pauses go, or how long it waits. Buckets come after."""
    if limits.forced_open:
        return Wait(Reason.FORCED, SHORTEST_DELAY)
    if gate.paused(now) > ZERO:
        return Wait(Reason.PAUSED, gate.paused(now))
    if gate.open_until is None:
        return gate
    if gate.state(now) is BreakerState.HALF_OPEN and gate.probe != asking.caller:  # its own: an earlier attempt of it, lost
        return Wait(Reason.PROBING, SHORTEST_DELAY)
    opens = gate.open_until + (LAST_TRY_GRACE if asking.last_try else ZERO)
    if now < opens:
        return Wait(Reason.OPEN, opens - now)
    return replace(gate, probe=asking.caller, probe_until=now + min(asking.timeout, LONGEST_LEASE))


def succeeded(gate: Gate, now: datetime, caller: str, sent_at: datetime) -> Gate:
    """The gate after an answer. Answers take long and refusals do not: one to a request from before the trouble says nothing."""
    if gate.open_until is not None:
        return closed(gate, now) if gate.probe == caller else gate
    if gate.streak_since is None or sent_at < gate.streak_since:
        return gate
    return replace(gate, failures=0, streak_since=None)


def closed(gate: Gate, now: datetime) -> Gate:
    """The gate with its breaker closed, and recovering."""
    return Gate(paused_until=gate.paused_until, recovering_since=now, steady_per_second=gate.steady_per_second)


def failed(gate: Gate, now: datetime, caller: str, failure: Failure, traffic: Traffic) -> Gate:
    """The gate after a failure: of the provider, or of a request that the provider was well enough to refuse.

    Failures are in a row only if they are most of what was sent meanwhile: the answers between them may still be on their way.
    """
    if not failure.answer.breaker:
        return closed(gate, now) if gate.open_until is not None and gate.probe == caller else gate
    if gate.open_until is not None:
        return _opened(gate, now) if gate.probe == caller else gate
    if not gate.failures:
        return replace(gate, failures=1, streak_since=now, streak_from=traffic.sent)
    after = replace(gate, failures=gate.failures + 1)
    in_a_row = 2 * after.failures > traffic.sent - gate.streak_from
    return _opened(_measured(after, now, traffic), now) if after.failures > TOLERATED_FAILURES and in_a_row else after


def paused(gate: Gate, now: datetime, length: timedelta, traffic: Traffic) -> Gate:
    """The gate after the provider has asked to be left alone: for all, and slowly at first when it is over."""
    until = now + length
    if gate.paused_until is not None and until <= gate.paused_until:
        return gate
    return replace(_measured(gate, now, traffic), paused_until=until, recovering_since=until)


def draws(gate: Gate, limits: Limits, now: datetime, tokens: int) -> tuple[Draw | None, Draw | None, Draw | None]:
    """What a request takes from the buckets of requests, of tokens, and of the slow start; None: that one has no bottom."""
    pace = gate.pace(now)
    return (
        _draw(1, limits.requests_per_minute),
        _draw(tokens, limits.tokens_per_minute),
        None if pace is None else _with_burst(timedelta(seconds=1 / pace), PACE_BURST),
    )


def full(gate: Gate, limits: Limits, now: datetime, crowd: Crowd) -> timedelta | None:
    """How long a start that can wait should wait: nothing may leave now, or others wait already. None: there is room."""
    longest = max(
        gate.paused(now),
        LATER if gate.open_until is not None else ZERO,
        LATER if crowd.turned_away_at is not None and now < crowd.turned_away_at + QUEUED else ZERO,
        _over(crowd.requests_due, limits.requests_per_minute, now),
        _over(crowd.tokens_due, limits.tokens_per_minute, now),
    )
    return min(max(longest, SOONEST), LATEST) if longest > ZERO else None


def given_back(limits: Limits, taken: int, used: int, since: timedelta) -> timedelta:
    """What an answer gives back to the bucket of tokens, as time: what its request took `since` ago and did not use.

    Nothing after a minute: by then the request has left the window that the limit is about.
    """
    draw = _draw(taken - used, limits.tokens_per_minute)
    return ZERO if draw is None or used >= taken or since >= WINDOW else draw.cost


def delay(wait: timedelta, looks: int, chance: float) -> timedelta:
    """When a waiting call looks again: after the wait or a backoff by how often it looked, spread by `chance` in [0, 1)."""
    backoff = min(SHORTEST_DELAY * (1 << min(max(looks, 1) - 1, 10)), LONGEST_UNKNOWN)
    length = min(max(wait, backoff), LONGEST_DELAY)
    return length * (1 + chance / 2)


def out_of_patience(wait: Wait, waited: timedelta, patience: timedelta) -> bool:
    """Has the call waited long enough, or is certain to have before it may go?"""
    return waited >= patience or (wait.reason is Reason.PAUSED and waited + wait.length > patience)


def busy(gate: GateId, wait: Wait, waited: timedelta) -> Failure:
    """The failure of a call that waited in vain."""
    limited = wait.reason in (Reason.LIMIT, Reason.PAUSED)
    message = f"waited {waited.total_seconds():.0f} s at the gate of {gate.provider} {gate.model}: {wait.reason}"
    return Failure(kind=FailureKind.RATE_LIMITED if limited else FailureKind.OVERLOADED, message=message)


def _opened(gate: Gate, now: datetime) -> Gate:
    wait = min(FIRST_WAIT * (1 << min(gate.openings, 10)), LONGEST_WAIT)
    return replace(gate, openings=gate.openings + 1, open_until=now + wait, probe=None, probe_until=None)


def _measured(gate: Gate, now: datetime, traffic: Traffic) -> Gate:
    """Trouble during a recovery must not make the slowness of the recovery the new normal."""
    begun = gate.recovering_since  # which may lie ahead: at the end of a pause
    before = gate.steady_per_second if begun is not None and now < begun + SLOW_START else 0.0
    return replace(gate, steady_per_second=max(before, traffic.per_second))


def _over(due: datetime | None, per_minute: int | None, now: datetime) -> timedelta:
    """How long until the smallest request may leave."""
    return ZERO if due is None or per_minute is None else due - BURST - now


def _draw(amount: int, per_minute: int | None) -> Draw | None:
    if per_minute is None:
        return None
    return _with_burst(WINDOW * (amount / (SUSTAINED * per_minute)), BURST)


def _with_burst(cost: timedelta, burst: timedelta) -> Draw:
    """What is larger than the burst goes when the bucket is empty, and is paid off after."""
    return Draw(cost, max(ZERO, burst - cost))
