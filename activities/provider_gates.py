"""How do all workers together know whether a request to a model may leave now?

One row a provider, model and key, judged by the database's clock: workers may disagree about the time, not about the gate. What
a verdict changes is written only if the row is still the one that was judged (`changes`); what a request takes from the buckets
is one statement. Call these last in a transaction: until it ends, nobody else passes this gate.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, fields, replace
from datetime import datetime, timedelta

from asyncpg import Record
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.postgres import Connection
from durable_agents.domain import provider_gates
from durable_agents.domain.failures import Failure
from durable_agents.domain.identifiers import TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT, Asking, Crowd, Gate, GateId, Limits, Reason, Traffic, Wait

PROVIDER_BUSY = "provider_busy"
MEMORY = timedelta(seconds=10)
"""What left is forgotten with this time constant: the rate before a trouble is that of the last ten seconds or so."""
_FROZEN_WORKER = "5s"  # a worker that stops existing inside its transaction holds the gate for no longer

_STATE = tuple(field.name for field in fields(Gate))
SEEN = f"""
key, {", ".join(_STATE)}, changes, sent, requests_per_minute, tokens_per_minute, coalesce(forced_open, false) as forced_open,
clock_timestamp() as now
"""
RATE = "load * exp(-greatest(0, extract(epoch from clock_timestamp() - load_at)::float8) / {memory}) / {memory} as per_second"
_READ = f"""
select {SEEN}, {RATE.format(memory="$5")} from provider_gate left join provider_limit using (tenant, provider, model)
where tenant = $1 and provider = $2 and model = $3 and key = $4
"""  # noqa: S608 - names of our own columns
_WRITE = f"""
update provider_gate set changes = changes + 1, {", ".join(f"{name} = ${n}" for n, name in enumerate(_STATE, 6))}
where tenant = $1 and provider = $2 and model = $3 and key = $4 and changes = $5 returning 1
"""  # noqa: S608 - names of our own columns
_TAKE = """
with clock as (select clock_timestamp() as now),
taken as (
    update provider_gate set
        requests_due = coalesce(greatest(requests_due, clock.now) + $5::interval, requests_due),
        tokens_due = coalesce(greatest(tokens_due, clock.now) + $7::interval, tokens_due),
        pace_due = coalesce(greatest(pace_due, clock.now) + $9::interval, pace_due),
        load = load * exp(-greatest(0, extract(epoch from clock.now - load_at)::float8) / $11) + 1,
        load_at = greatest(load_at, clock.now),
        sent = sent + 1
    from clock
    where tenant = $1 and provider = $2 and model = $3 and key = $4
        and ($6::interval is null or requests_due <= clock.now + $6)
        and ($8::interval is null or tokens_due <= clock.now + $8)
        and ($10::interval is null or pace_due <= clock.now + $10)
    returning 1
)
select exists (select from taken) as taken,
       greatest(requests_due - $6 - clock.now, tokens_due - $8 - clock.now, interval '0') as limited,
       greatest(pace_due - $10 - clock.now, interval '0') as paced
from provider_gate, clock where tenant = $1 and provider = $2 and model = $3 and key = $4
"""
"""All buckets or none (GCRA). A row that another request has just changed is judged again as it is then; the wait that is said
may be too short after that, and the call asks once more."""
_CROWD = f"""
select {SEEN}, {RATE.format(memory="$5")}, requests_due, tokens_due, turned_away_at
from provider_gate full join provider_limit using (tenant, provider, model)
where tenant = $1 and provider = $2 and model = $3 and (key = $4 or key is null)
"""  # noqa: S608 - names of our own columns
_GIVE_BACK = """
update provider_gate gate set tokens_due = tokens_due - $5::interval from provider_limit as said
where gate.tenant = $1 and gate.provider = $2 and gate.model = $3 and gate.key = $4 and tokens_due > clock_timestamp()
    and said.tenant = $1 and said.provider = $2 and said.model = $3 and said.changed_at <= $6
"""
"""A bucket is empty from its time on: one whose time lies in the past holds no less than nothing. What was taken at another limit
is not given back to this one."""
_TURNED_AWAY = """
update provider_gate set turned_away_at = clock_timestamp()
where tenant = $1 and provider = $2 and model = $3 and key = $4
    and (turned_away_at is null or turned_away_at < clock_timestamp() - interval '1 second')
"""


@dataclass(frozen=True)
class Sight:
    """A gate as it was read."""

    gate: Gate
    limits: Limits
    now: datetime
    traffic: Traffic
    changes: int


Judge = Callable[[Sight], Gate]
"""What becomes of a gate; the same object when nothing does."""


async def ask(connection: Connection, tenant: TenantId, gate: GateId, asking: Asking) -> Wait | None:
    """Let a request through and count it, or say why it must wait; then nothing was changed."""
    async with _as_system(connection, tenant):
        return await _admitted(connection, gate, asking)


async def turned_away(connection: Connection, tenant: TenantId, gate: GateId) -> None:
    """Leave a trace that somebody waits: in a transaction of its own, for the one that asked is undone."""
    async with _as_system(connection, tenant):
        await look(connection, gate)
        await connection.execute(_TURNED_AWAY, *_key(gate))


async def full(connection: Connection, tenant: TenantId, gates: Sequence[GateId]) -> timedelta | None:
    """How long a start that can wait should wait, judged at the first model that operators let run; None: there is room."""
    forced = False
    async with _as_system(connection, tenant):
        for gate in gates:
            row = await connection.fetchrow(_CROWD, *_key(gate), MEMORY.total_seconds())
            if row is None:
                return None
            seen = sight_of(row)
            if not seen.limits.forced_open:
                crowd = Crowd(row["requests_due"], row["tokens_due"], row["turned_away_at"])
                return provider_gates.full(seen.gate, seen.limits, seen.now, crowd)
            forced = True
    return provider_gates.LATER if forced else None


async def answered(
    connection: Connection, tenant: TenantId, gate: GateId, caller: str, sent_at: datetime, *, taken: int, used: int
) -> None:
    """Report that the provider has answered this call's request, and give back the tokens that it took and did not use."""
    async with _as_system(connection, tenant):
        seen = await change(connection, gate, lambda sight: provider_gates.succeeded(sight.gate, sight.now, caller, sent_at))
        unused = provider_gates.given_back(seen.limits, taken, used, seen.now - sent_at)
        if unused > provider_gates.ZERO:
            await connection.execute(_GIVE_BACK, *_key(gate), unused, sent_at)


async def failed(
    connection: Connection, tenant: TenantId, gate: GateId, caller: str, failure: Failure, retry_after: timedelta | None
) -> None:
    """Report what went wrong with this call's request, and how long the provider wants to be left alone."""

    def judge(sight: Sight) -> Gate:
        after = provider_gates.failed(sight.gate, sight.now, caller, failure, sight.traffic)
        if retry_after is None or not failure.answer.retry_here:
            return after
        return provider_gates.paused(after, sight.now, retry_after, sight.traffic)

    async with _as_system(connection, tenant):
        await change(connection, gate, judge)


async def change(connection: Connection, gate: GateId, judge: Judge) -> Sight:
    """Write what becomes of a gate, and return what was judged; in a transaction of the system tenant."""
    while True:
        sight = await look(connection, gate)
        after = judge(sight)
        if after is sight.gate or await _write(connection, gate, sight, after):
            return sight


async def look(connection: Connection, gate: GateId) -> Sight:
    """The gate now, made at the first look; in a transaction of the system tenant."""
    row = await connection.fetchrow(_READ, *_key(gate), MEMORY.total_seconds())
    if row is None:
        await connection.execute(
            "insert into provider_gate (tenant, provider, model, key) values ($1, $2, $3, $4) on conflict do nothing", *_key(gate)
        )
        row = await connection.fetchrow(_READ, *_key(gate), MEMORY.total_seconds())
    assert row is not None
    return sight_of(row)


def sight_of(row: Record) -> Sight:
    """A gate from its row; one that nobody has asked yet has no key."""
    return Sight(
        gate=Gate() if row["key"] is None else Gate(**{name: row[name] for name in _STATE}),
        limits=Limits(row["requests_per_minute"], row["tokens_per_minute"], row["forced_open"]),
        now=row["now"],
        traffic=Traffic(row["sent"] or 0, row["per_second"] or 0.0),
        changes=row["changes"] or 0,
    )


async def _admitted(connection: Connection, gate: GateId, asking: Asking) -> Wait | None:
    sight = await look(connection, gate)
    verdict = provider_gates.admit(sight.gate, sight.limits, sight.now, asking)
    if isinstance(verdict, Wait):
        return verdict
    if verdict is not sight.gate and not await _write(connection, gate, sight, verdict):
        return Wait(Reason.PROBING, provider_gates.SHORTEST_DELAY)  # another call was faster
    wait = await _take(connection, gate, sight, asking.tokens)
    if wait is not None and verdict is not sight.gate:
        await _write(connection, gate, replace(sight, changes=sight.changes + 1), sight.gate)  # somebody else may be the probe
    return wait


async def _take(connection: Connection, gate: GateId, sight: Sight, tokens: int) -> Wait | None:
    drawn = provider_gates.draws(sight.gate, sight.limits, sight.now, tokens)
    amounts = [value for draw in drawn for value in (draw or (None, None))]
    row = await connection.fetchrow(_TAKE, *_key(gate), *amounts, MEMORY.total_seconds())
    assert row is not None
    if row["taken"]:
        return None
    limited, paced = row["limited"] or timedelta(0), row["paced"] or timedelta(0)
    is_pace = drawn[-1] is not None and paced >= limited
    return Wait(Reason.RECOVERING, paced) if is_pace else Wait(Reason.LIMIT, limited)


async def _write(connection: Connection, gate: GateId, sight: Sight, after: Gate) -> bool:
    return await connection.fetchval(_WRITE, *_key(gate), sight.changes, *astuple(after)) is not None


def _key(gate: GateId) -> tuple[str, str, str, str]:
    return (SYSTEM_TENANT, gate.provider, gate.model, gate.key)


def look_again(wait: Wait) -> ApplicationError:
    """The error of a call that waits in the server: no try was used, no money is held, and the slot is free."""
    looks = activity.info().attempt
    return ApplicationError(
        f"waits at the provider's gate: {wait.reason}",
        type=PROVIDER_BUSY,
        next_retry_delay=provider_gates.delay(wait.length, looks, random.random()),  # noqa: S311 - spreads load, guards nothing
        category=ApplicationErrorCategory.BENIGN,  # not a line in the log for each look
    )


@asynccontextmanager
async def _as_system(connection: Connection, tenant: TenantId) -> AsyncIterator[None]:
    """A part of a tenant's transaction that sees the rows of nobody. After an error the transaction is over, and both with it."""
    settings = "select set_config('app.tenant', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)"
    await connection.execute(settings, SYSTEM_TENANT, _FROZEN_WORKER)
    yield
    await connection.execute(settings, tenant, _FROZEN_WORKER)
