"""What may a user, an agent, a tenant, or everything together spend, and how much of it is used?

Operators set limits while everything runs; they hold from the next draw on, and who changed them stands in the audit log. What
runs have drawn and not used is called back, so that a lowered limit stops the next request of every run at once.
"""

from dataclasses import dataclass, replace
from datetime import date

from pydantic import JsonValue

from activities import audit, ledger
from activities.postgres import Connection, Database
from durable_agents.domain.accounts import EACH, Amount, Period, Scope
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT

_STANDINGS = """
select scope, name, period, limits.micros, limits.tokens, changed_by, coalesce(drawn_micros, 0) as drawn_micros,
    coalesce(drawn_tokens, 0) as drawn_tokens
from (select * from account_limit where tenant = $1) limits full join (
    select * from account
    where tenant = $1 and starts = case period when 'day' then $2::date else date_trunc('month', $2::date)::date end) used
    using (tenant, scope, name, period)
order by array_position(array['all', 'tenant', 'agent', 'user'], scope), name,
    array_position(array['run', 'day', 'month'], period)
"""
_SET = """
insert into account_limit as old values ($1, $2, $3, $4, $5, $6, $7)
on conflict (tenant, scope, name, period) do update set changed_by = excluded.changed_by, changed_at = now(),
    micros = coalesce(excluded.micros, old.micros), tokens = coalesce(excluded.tokens, old.tokens)
returning micros, tokens
"""
_EVERY_DRAW_LOCKS = """
select from account where tenant = $1 and scope = $2
and starts >= date_trunc('month', now() at time zone 'utc' - interval '1 day')::date
order by scope, name, period, starts for update
"""
_RESTING = """
select distinct run_id from envelope where tenant = $1 and (rest_micros > 0 or rest_tokens > 0)
and ($2::text is null or user_id = $2) and ($3::text is null or agent = $3) order by run_id
"""


OF_NO_RUN = RunId("")
"""In the audit log: what happened to a tenant and not to a run of it."""


@dataclass(frozen=True)
class Limit:
    """What an account may draw a run, day or month; None: unlimited."""

    scope: Scope
    name: str
    """Of the user or agent, or `*` for each without a limit of its own; empty for the tenant and for everything."""
    period: Period
    micros: int | None
    tokens: int | None


@dataclass(frozen=True)
class Standing:
    """A limit, an account, or both: what is allowed, and what is drawn of it now."""

    limit: Limit
    drawn: Amount
    """Nothing for a limit a run: each run has its own."""
    changed_by: str | None


def home(tenant: TenantId, scope: Scope) -> TenantId:
    """Where an account's rows stand."""
    return SYSTEM_TENANT if scope is Scope.ALL else tenant


async def set_limit(connection: Connection, tenant: TenantId, limit: Limit, by: str) -> Limit:
    """Set what is not None; the other limit stays as it is. What holds now. In a transaction of the account's `home`."""
    where = home(tenant, limit.scope)
    row = await connection.fetchrow(_SET, where, limit.scope, limit.name, limit.period, limit.micros, limit.tokens, by)
    assert row is not None
    now = replace(limit, micros=row["micros"], tokens=row["tokens"])
    await _audit(connection, where, now, by)
    return now


async def clear_limit(connection: Connection, tenant: TenantId, scope: Scope, name: str, period: Period, by: str) -> bool:
    """Remove a limit: unlimited from now on, or held to the limit of each. False when there was none."""
    where = home(tenant, scope)
    removed = await connection.fetchval(
        "delete from account_limit where tenant = $1 and scope = $2 and name = $3 and period = $4 returning 1",
        where, scope, name, period,
    )  # fmt: skip
    if removed is None:
        return False
    await _audit(connection, where, Limit(scope, name, period, None, None), by)
    return True


async def _audit(connection: Connection, where: TenantId, now: Limit, by: str) -> None:
    body: dict[str, JsonValue] = {
        "scope": now.scope, "name": now.name, "period": now.period, "micros": now.micros, "tokens": now.tokens, "by": by,
    }  # fmt: skip
    await audit.append(connection, where, OF_NO_RUN, "limit_changed", body)


async def standings(connection: Connection, tenant: TenantId, day: date) -> list[Standing]:
    """Every limit and every account of a tenant (or of the system tenant: those of everything) on a day."""
    return [
        Standing(
            Limit(Scope(row["scope"]), row["name"], Period(row["period"]), row["micros"], row["tokens"]),
            Amount(row["drawn_micros"], row["drawn_tokens"]),
            row["changed_by"],
        )
        for row in await connection.fetch(_STANDINGS, tenant, day)
    ]


async def call_back(database: Database, tenant: TenantId, scope: Scope, name: str) -> Amount:
    """Return to the accounts what runs of this account have drawn and not used; they draw again when they need it.

    First the draws under way are awaited, for they may not have seen a limit that was just set, and are not yet to be seen.
    """
    where = home(tenant, scope)
    async with database.transaction(where) as connection:
        await connection.fetch(_EVERY_DRAW_LOCKS, where, Scope.ALL if scope is Scope.ALL else Scope.TENANT)
    tenants = await known_tenants(database) if scope is Scope.ALL else [tenant]
    user = name if scope is Scope.USER and name != EACH else None
    agent = name if scope is Scope.AGENT and name != EACH else None
    micros = tokens = 0
    for one in tenants:
        async with database.transaction(one) as connection:
            runs = [RunId(row["run_id"]) for row in await connection.fetch(_RESTING, one, user, agent)]
        for run in runs:
            async with database.transaction(one) as connection:
                rest = await ledger.give_back(connection, one, run, "called back")
            micros, tokens = micros + rest.micros, tokens + rest.tokens
    return Amount(micros, tokens)


async def known_tenants(database: Database) -> list[TenantId]:
    """Every tenant that has ever drawn."""
    async with database.transaction(SYSTEM_TENANT) as connection:
        rows = await connection.fetch("select name from known_tenant where tenant = $1 order by name", SYSTEM_TENANT)
    return [TenantId(row["name"]) for row in rows]
