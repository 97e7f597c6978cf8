"""Does the ledger say what happened, and what of it is nobody's any more?

Requests whose worker is gone are flagged: their money stays held, as unknown, until somebody who has seen the provider's bill
settles them. What runs have drawn and left lying is returned. Counters are held against the sums of the entries.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta

from asyncpg import Record
from pydantic import JsonValue

from activities import account_limits, audit, ledger
from activities.ledger import Payer
from activities.postgres import Connection, Database, as_tenant
from durable_agents.domain.accounts import Amount
from durable_agents.domain.identifiers import RunId, TenantId, UserId
from durable_agents.domain.provider_gates import SYSTEM_TENANT

IDLE = timedelta(hours=1)
"""How long a run keeps what it has drawn without using it: its next call draws again."""
RECENT = timedelta(days=2)
"""A pass, made every few minutes, checks the days on which something moves: all would soon take longer than a statement may."""
_OF_PAYER = """
from model_attempt a join run r on r.tenant = a.tenant and r.run_id = a.run_id
join run p on p.tenant = r.tenant and p.run_id = coalesce(r.payer, r.run_id)
"""
_GONE = f"""
select a.run_id, a.call, a.attempt, a.hold_micros, a.hold_tokens, (a.dispatched_at at time zone 'utc')::date as day,
    p.run_id as payer, p.user_id, p.agent
{_OF_PAYER} where a.tenant = $1 and a.state = 'dispatched' and a.gives_up_at < now()
order by p.run_id, day, a.run_id, a.call, a.attempt for update of a skip locked
"""
"""In the order in which the envelopes are locked afterwards: two that flag at once must not wait for each other."""
_UNKNOWN = f"""
select a.run_id, a.call, a.attempt, a.provider, a.model, a.request_id, a.hold_micros, a.hold_tokens, a.failure, a.dispatched_at,
    (a.dispatched_at at time zone 'utc')::date as day, p.run_id as payer, p.user_id, p.agent
{_OF_PAYER} where a.tenant = $1 and a.state = 'unknown'
"""
_IDLE = """
select run_id from envelope where tenant = $1 and (rest_micros > 0 or rest_tokens > 0)
and (touched_at < now() - $2::interval or day < (now() at time zone 'utc')::date) order by run_id
"""
_PLACES = ("rest", "held", "unknown", "spent", "overrun")
_MOVED = ", ".join(
    f"coalesce(sum({unit}) filter (where credit = '{place}'), 0) - coalesce(sum({unit}) filter (where debit = '{place}'), 0)"
    f" as {place}_{unit}"
    for place in _PLACES
    for unit in ("micros", "tokens")
)
_ENVELOPES_DIFFER = f"""
select envelope.run_id, envelope.day from envelope left join (
    select run_id, day, {_MOVED} from ledger_entry where tenant = $1 and day >= $2 group by run_id, day) moved
    using (run_id, day)
where tenant = $1 and day >= $2
    and ({", ".join(f"envelope.{p}_{u}" for p in _PLACES for u in ("micros", "tokens"))}) is distinct from
    ({", ".join(f"coalesce(moved.{p}_{u}, 0)" for p in _PLACES for u in ("micros", "tokens"))})
"""  # noqa: S608 - names of our own columns
_DRAWN = "sum(rest_{0} + held_{0} + unknown_{0} + spent_{0})"
_ACCOUNTS_DIFFER = f"""
with drawn as (
    select user_id, agent, day, {_DRAWN.format("micros")} as micros, {_DRAWN.format("tokens")} as tokens
    from envelope where tenant = $1 and day >= $2 group by user_id, agent, day),
sums as (
    select 'user' as scope, user_id as name, day, micros, tokens from drawn
    union all select 'agent', agent, day, micros, tokens from drawn
    union all select 'tenant', '', day, micros, tokens from drawn),
expected as (
    select scope, name, 'day' as period, day as starts, sum(micros) as micros, sum(tokens) as tokens from sums group by 1, 2, 4
    union all select scope, name, 'month', date_trunc('month', day)::date, sum(micros), sum(tokens) from sums group by 1, 2, 4)
select scope, name, period, starts from (select * from account where tenant = $1 and starts >= $2) held full join expected
    using (scope, name, period, starts)
where (coalesce(drawn_micros, 0), coalesce(drawn_tokens, 0)) <> (coalesce(micros, 0), coalesce(tokens, 0))
"""  # noqa: S608 - names of our own columns
_ATTEMPTS_DIFFER = """
select held.run_id from (
    select p.run_id, sum(a.hold_micros) filter (where a.state = 'dispatched') as held,
        sum(a.hold_micros) filter (where a.state = 'unknown') as unknown, sum(a.cost_micros) as spent,
        sum(a.overrun_micros) as overrun
    from model_attempt a join run r using (tenant, run_id)
    join run p on p.tenant = r.tenant and p.run_id = coalesce(r.payer, r.run_id)
    where a.tenant = $1 and a.dispatched_at >= $2::date::timestamp at time zone 'utc' group by p.run_id) held
full join (
    select run_id, sum(held_micros) as held, sum(unknown_micros) as unknown, sum(spent_micros) as spent,
        sum(overrun_micros) as overrun from envelope where tenant = $1 and day >= $2 group by run_id) booked using (run_id)
where (coalesce(held.held, 0), coalesce(held.unknown, 0), coalesce(held.spent, 0), coalesce(held.overrun, 0))
    <> (coalesce(booked.held, 0), coalesce(booked.unknown, 0), coalesce(booked.spent, 0), coalesce(booked.overrun, 0))
"""


@dataclass(frozen=True)
class Reconciled:
    """What one pass over a tenant's ledger found and did."""

    flagged: int = 0
    """Requests whose worker is gone; their money is unknown from now on."""
    returned_micros: int = 0
    returned_tokens: int = 0
    unknown: int = 0
    """Requests that wait for somebody who has seen the provider's bill."""
    unknown_micros: int = 0
    differences: tuple[str, ...] = ()
    """Where counters and entries of the last days disagree: never, unless somebody has changed the tables by hand."""

    def plus(self, other: "Reconciled") -> "Reconciled":
        """Both together."""
        return Reconciled(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class UnknownAttempt:
    """A request that may have been billed."""

    run_id: RunId
    call: int
    attempt: int
    provider: str
    model: str
    request_id: str | None
    """The provider's own, if its answer began; it stands on the bill."""
    hold: Amount
    failure: str | None
    dispatched_at: datetime


@dataclass(frozen=True)
class SettledUnknown:
    """What a request that was lost sight of has cost, and what came free by that."""

    hold: Amount
    cost: Amount
    """Within the hold."""
    overrun_micros: int
    returned: Amount
    """What the run has given back to its accounts: the rest of the hold, and whatever else it had not used."""


async def reconcile(database: Database) -> Reconciled:
    """Go once over every tenant's ledger."""
    total = Reconciled()
    for tenant in await account_limits.known_tenants(database):
        total = total.plus(await reconcile_tenant(database, tenant))
    return total


async def reconcile_tenant(database: Database, tenant: TenantId) -> Reconciled:
    """Go once over a tenant's ledger."""
    async with database.transaction(tenant) as connection:
        gone = await connection.fetch(_GONE, tenant)
        for row in gone:
            await _flag(connection, tenant, row)
        idle = await connection.fetch(_IDLE, tenant, IDLE)
    returned = [await _return(database, tenant, RunId(run)) for run in sorted({row["run_id"] for row in idle})]
    async with database.transaction(tenant) as connection:
        open_ = await unknown(connection, tenant)
        since = await ledger.today(connection) - RECENT
        found = tuple([line async for line in differences(connection, tenant, since)])
    return Reconciled(
        flagged=len(gone),
        returned_micros=sum(rest.micros for rest in returned),
        returned_tokens=sum(rest.tokens for rest in returned),
        unknown=len(open_),
        unknown_micros=sum(attempt.hold.micros for attempt in open_),
        differences=found,
    )


async def unknown(connection: Connection, tenant: TenantId) -> list[UnknownAttempt]:
    """Every request of a tenant that may have been billed, oldest first."""
    rows = await connection.fetch(f"{_UNKNOWN} order by a.dispatched_at", tenant)
    return [
        UnknownAttempt(
            RunId(row["run_id"]), row["call"], row["attempt"], row["provider"], row["model"], row["request_id"],
            Amount(row["hold_micros"], row["hold_tokens"]), row["failure"], row["dispatched_at"],
        )
        for row in rows
    ]  # fmt: skip


async def settle_unknown(
    connection: Connection, tenant: TenantId, attempt: tuple[RunId, int, int], micros: int, *, by: str, reason: str
) -> SettledUnknown | None:
    """Book what a request has cost after all, 0 when it was never billed; None when it is not (or no longer) unknown.

    What is beyond its hold goes to overrun. Its tokens count as the share of the hold that its money is. The rest of the hold
    goes back to the accounts at once: the run may have ended long ago.
    """
    run, call, number = attempt
    row = await connection.fetchrow(
        f"{_UNKNOWN} and a.run_id = $2 and a.call = $3 and a.attempt = $4 for update of a", tenant, run, call, number
    )
    if row is None:
        return None
    hold = Amount(row["hold_micros"], row["hold_tokens"])
    charged = min(micros, hold.micros)
    tokens = -(-hold.tokens * charged // hold.micros) if hold.micros else hold.tokens if micros else 0
    await connection.execute(
        "update model_attempt set state = $5, cost_micros = $6, overrun_micros = $7, tokens = $8, settled_at = now()"
        " where tenant = $1 and run_id = $2 and call = $3 and attempt = $4",
        tenant, run, call, number, "settled" if micros else "released", charged, micros - charged, tokens,
    )  # fmt: skip
    payer = _payer(tenant, row)
    identity = ledger.transfer(run, call, number, payer)
    spent = Amount(micros, tokens)
    if micros:
        await ledger.settle(connection, payer, identity, row["day"], hold, spent, place="unknown")
    else:
        await ledger.release(connection, payer, identity, row["day"], hold, place="unknown")
    returned = await ledger.give_back(connection, tenant, payer.run_id, f"settled {identity}")
    body: dict[str, JsonValue] = {"call": call, "attempt": number, "cost_micros": micros, "by": by, "reason": reason}
    await audit.append(connection, tenant, run, "unknown_settled", body)
    return SettledUnknown(hold, Amount(charged, tokens), micros - charged, returned)


async def differences(connection: Connection, tenant: TenantId, since: date = date.min) -> AsyncIterator[str]:
    """Where a tenant's counters, entries and journal disagree, a line each; of accounts the whole months are looked at."""
    async for row in connection.cursor(_ENVELOPES_DIFFER, tenant, since):
        yield f"the envelope of {row['run_id']} on {row['day']} is not the sum of its entries"
    async for row in connection.cursor(_ACCOUNTS_DIFFER, tenant, since.replace(day=1)):
        yield f"account {row['scope']} {row['name']} of the {row['period']} from {row['starts']} is not the sum of its envelopes"
    async for row in connection.cursor(_ATTEMPTS_DIFFER, tenant, since):
        yield f"the envelopes of {row['run_id']} are not the sum of its requests"


async def all_differ(database: Database) -> bool:
    """Are the accounts of everything together other than the sum of all tenants' own?"""
    sums: dict[tuple[str, object], list[int]] = {}
    query = (
        "select scope, period, starts, drawn_micros, drawn_tokens from account where tenant = $1 and scope in ('tenant', 'all')"
    )
    async with database.transaction(SYSTEM_TENANT, snapshot=True) as connection:  # tenants draw between the statements
        booked = {(row["period"], row["starts"]): list(row)[3:] for row in await connection.fetch(query, SYSTEM_TENANT)}
        for tenant in await connection.fetch("select name from known_tenant where tenant = $1", SYSTEM_TENANT):
            async with as_tenant(connection, TenantId(tenant["name"]), SYSTEM_TENANT):
                for row in await connection.fetch(query, tenant["name"]):
                    of_period = sums.setdefault((row["period"], row["starts"]), [0, 0])
                    of_period[0], of_period[1] = of_period[0] + row["drawn_micros"], of_period[1] + row["drawn_tokens"]
    return sums != booked


async def _flag(connection: Connection, tenant: TenantId, row: Record) -> None:
    await connection.execute(
        "update model_attempt set state = 'unknown', failure = 'lost', settled_at = now()"
        " where tenant = $1 and run_id = $2 and call = $3 and attempt = $4",
        tenant, row["run_id"], row["call"], row["attempt"],
    )  # fmt: skip
    payer = _payer(tenant, row)
    identity = ledger.transfer(row["run_id"], row["call"], row["attempt"], payer)
    await ledger.lose(connection, payer, identity, row["day"], Amount(row["hold_micros"], row["hold_tokens"]))


async def _return(database: Database, tenant: TenantId, run: RunId) -> Amount:
    async with database.transaction(tenant) as connection:
        return await ledger.give_back(connection, tenant, run, "idle")


def _payer(tenant: TenantId, row: Record) -> Payer:
    return Payer(tenant, RunId(row["payer"]), UserId(row["user_id"]), row["agent"])
