"""What may a run spend of whose money, what has it spent, and what may it have spent?

Two-phase and double entry: before a request leaves, what it can cost at most is held; afterwards it is settled, released, or
lost sight of. The envelope of a run and day is what it has drawn of its accounts; every movement is one row of `ledger_entry`,
written in the same statement as what it moves. Each runs in the caller's transaction, under an id that is the caller's: a
movement that is written already moves nothing again.

Locks are taken in one order everywhere: envelope, the tenant's accounts by name, those of everything together, the audit's head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from activities import notifications
from activities.postgres import Connection, as_tenant
from durable_agents.domain import accounts
from durable_agents.domain.accounts import NOTHING, Account, AccountName, Amount, Draw, NoRoom, Scope
from durable_agents.domain.identifiers import RunId, TenantId, UserId
from durable_agents.domain.provider_gates import SYSTEM_TENANT

UTC_TODAY = "(now() at time zone 'utc')::date"
_HOLD = f"""
with moved as (
    update envelope set rest_micros = rest_micros - $5, rest_tokens = rest_tokens - $6,
        held_micros = held_micros + $5, held_tokens = held_tokens + $6, touched_at = now()
    where tenant = $1 and run_id = $2 and day = coalesce($3, {UTC_TODAY}) and rest_micros >= $5 and rest_tokens >= $6
        and not exists (
            select from ledger_entry
            where tenant = $1 and run_id = $2 and transfer = $4 and kind = 'hold' and day = coalesce($3, {UTC_TODAY}))
    returning rest_micros, day
), written as (
    insert into ledger_entry (tenant, run_id, day, kind, transfer, debit, credit, micros, tokens)
    select $1, $2, day, 'hold', $4, 'rest', 'held', $5, $6 from moved
)
select rest_micros from moved
"""  # noqa: S608 - an expression of our own
_LOCK_ENVELOPE = f"""
insert into envelope (tenant, run_id, day, user_id, agent) values ($1, $2, coalesce($3, {UTC_TODAY}), $4, $5)
on conflict (tenant, run_id, day) do update set touched_at = now() returning day
"""  # noqa: S608 - an expression of our own
_ENVELOPE = """
select rest_micros, rest_tokens, drawn.micros, drawn.tokens, exists (
    select from ledger_entry where tenant = $1 and run_id = $2 and transfer = $4 and kind = 'hold' and day = $3) as is_held
from envelope, (
    select sum(rest_micros + held_micros + unknown_micros + spent_micros)::bigint as micros,
        sum(rest_tokens + held_tokens + unknown_tokens + spent_tokens)::bigint as tokens
    from envelope where tenant = $1 and run_id = $2) drawn
where tenant = $1 and run_id = $2 and day = $3
"""
"""A statement of its own, after the lock: it sees what the lock has waited for."""
_LOCK = """
select scope, name, period, starts, drawn_micros, drawn_tokens, own.micros, own.tokens,
    run.micros as run_micros, run.tokens as run_tokens
from account a
left join lateral (
    select micros, tokens from account_limit l
    where l.tenant = a.tenant and l.scope = a.scope and l.period = a.period and l.name in (a.name, '*')
    order by l.name = '*' limit 1) own on true
left join lateral (
    select micros, tokens from account_limit l
    where l.tenant = a.tenant and l.scope = a.scope and l.period = 'run' and l.name in (a.name, '*') and a.period = 'day'
    order by l.name = '*' limit 1) run on true
where tenant = $1 and (scope, name, period, starts) in (select * from unnest($2::text[], $3::text[], $4::text[], $5::date[]))
    and cardinality($2::text[]) = (
        select count(*) from account where tenant = $1
        and (scope, name, period, starts) in (select * from unnest($2::text[], $3::text[], $4::text[], $5::date[])))
order by scope, name, period, starts for update of a
"""
"""All or none: who held some and then opened the others would wait out of order, for somebody who opens them too."""
_OPEN_ACCOUNTS = """
insert into account (tenant, scope, name, period, starts)
select $1, * from unnest($2::text[], $3::text[], $4::text[], $5::date[]) on conflict do nothing
"""
_ADD = """
update account set drawn_micros = drawn_micros + $6, drawn_tokens = drawn_tokens + $7
where tenant = $1 and (scope, name, period, starts) in (select * from unnest($2::text[], $3::text[], $4::text[], $5::date[]))
"""
"""Only what is locked already: in which order it is changed makes no difference then."""
_DRAW_AND_HOLD = """
with added as (
    update account set drawn_micros = drawn_micros + $6, drawn_tokens = drawn_tokens + $7
    where tenant = $1 and (scope, name, period, starts) in (select * from unnest($2::text[], $3::text[], $4::text[], $5::date[]))
), moved as (
    update envelope set rest_micros = rest_micros + $6 - $11, rest_tokens = rest_tokens + $7 - $12,
        held_micros = held_micros + $11, held_tokens = held_tokens + $12, touched_at = now()
    where tenant = $1 and run_id = $8 and day = $9 returning rest_micros
), written as (
    insert into ledger_entry (tenant, run_id, day, kind, transfer, debit, credit, micros, tokens)
    select $1, $8, $9, kind, $10, debit, credit, micros, tokens from moved, (values
        ('draw', 'accounts', 'rest', $6::bigint, $7::bigint),
        ('hold', 'rest', 'held', $11::bigint, $12::bigint)) as entry (kind, debit, credit, micros, tokens)
)
select rest_micros from moved
"""
"""All of the tenant's own in one statement: the accounts of everything together are locked while it runs."""
_SETTLE = """
with moved as (
    update envelope set
        held_micros = held_micros - case when $5 = 'held' then $6::bigint else 0 end,
        held_tokens = held_tokens - case when $5 = 'held' then $7::bigint else 0 end,
        unknown_micros = unknown_micros - case when $5 = 'unknown' then $6::bigint else 0 end,
        unknown_tokens = unknown_tokens - case when $5 = 'unknown' then $7::bigint else 0 end,
        spent_micros = spent_micros + $8, spent_tokens = spent_tokens + $9,
        rest_micros = rest_micros + $6 - $8, rest_tokens = rest_tokens + $7 - $9,
        overrun_micros = overrun_micros + $10, overrun_tokens = overrun_tokens + $11, touched_at = now()
    where tenant = $1 and run_id = $2 and day = $3 and not exists (
        select from ledger_entry where tenant = $1 and run_id = $2 and transfer = $4 and day = $3
            and kind in ('settle', 'release'))
    returning 1)
insert into ledger_entry (tenant, run_id, day, kind, transfer, debit, credit, micros, tokens)
select $1, $2, $3, kind, $4, debit, credit, micros, tokens from moved, (values
    ('settle', $5, 'spent', $8::bigint, $9::bigint), ('release', $5, 'rest', $6 - $8, $7 - $9),
    ('overrun', 'provider', 'overrun', $10::bigint, $11::bigint)) as entry (kind, debit, credit, micros, tokens)
where micros > 0 or tokens > 0 or kind = $12
"""
_LOSE = """
with moved as (
    update envelope set held_micros = held_micros - $5, held_tokens = held_tokens - $6,
        unknown_micros = unknown_micros + $5, unknown_tokens = unknown_tokens + $6, touched_at = now()
    where tenant = $1 and run_id = $2 and day = $3 and not exists (
        select from ledger_entry where tenant = $1 and run_id = $2 and transfer = $4 and day = $3
            and kind in ('lose', 'settle', 'release'))
    returning 1)
insert into ledger_entry (tenant, run_id, day, kind, transfer, debit, credit, micros, tokens)
select $1, $2, $3, 'lose', $4, 'held', 'unknown', $5, $6 from moved
"""
_RESTS = """
select day, user_id, agent, rest_micros, rest_tokens from envelope
where tenant = $1 and run_id = $2 and (rest_micros > 0 or rest_tokens > 0) order by day for update
"""
_RETURNED = """
with returned as (
    update envelope set rest_micros = rest_micros - $5, rest_tokens = rest_tokens - $6, touched_at = now()
    where tenant = $1 and run_id = $2 and day = $3 returning 1)
insert into ledger_entry (tenant, run_id, day, kind, transfer, debit, credit, micros, tokens)
select $1, $2, $3, 'return', $4 || ' ' || pg_current_xact_id()::text, 'rest', 'accounts', $5, $6 from returned
"""
"""May happen again for the same reason: each return empties the rest, so that one which is tried again returns nothing."""


@dataclass(frozen=True)
class Payer:
    """Whose envelope pays: the run itself, or the one it stands in for."""

    tenant: TenantId
    run_id: RunId
    user: UserId
    agent: str


@dataclass(frozen=True)
class Held:
    """The money of a request is held."""

    rest_micros: int
    """What the run keeps beside it for its next calls."""
    used_percent: int
    """How much of the account that is nearest its limit is used; 0 when nothing was drawn, or nothing is limited."""


def transfer(run: str, call: int, attempt: int, payer: Payer) -> str:
    """The ledger's id of an attempt's movements, within the envelope of the run that pays for it."""
    own = f"{call}.{attempt}"
    return own if run == payer.run_id else f"{run} {own}"


async def today(connection: Connection) -> date:
    """The day in UTC to which this transaction's requests are charged."""
    day: date = await connection.fetchval(f"select {UTC_TODAY}")
    return day


async def hold(
    connection: Connection, payer: Payer, transfer: str, day: date | None, amount: Amount, allowance: int | None
) -> Held | NoRoom:
    """Hold what a request can cost at most, out of the run's envelope of the day, which draws on its accounts as needed.

    `day` is the one in UTC to which the request is charged; None: this transaction's. `allowance` is the money that the run may
    still spend by its own budget: it draws no more.
    """
    rest = await connection.fetchval(_HOLD, payer.tenant, payer.run_id, day, transfer, *amount)
    if rest is not None:
        return Held(rest, 0)
    day = await connection.fetchval(_LOCK_ENVELOPE, payer.tenant, payer.run_id, day, payer.user, payer.agent)
    assert day is not None
    envelope = await connection.fetchrow(_ENVELOPE, payer.tenant, payer.run_id, day, transfer)
    assert envelope is not None
    if envelope["is_held"]:
        return Held(envelope["rest_micros"], 0)
    kept, run_drawn = Amount(*envelope[:2]), Amount(*envelope[2:4])
    needed, wanted = amount.minus(kept).at_least(NOTHING), accounts.wanted(amount, allowance)
    own = accounts.windows(payer.user, payer.agent, day)
    drawn = await _draw(connection, payer.tenant, own, accounts.of_periods(Scope.ALL, "", day), run_drawn, needed, wanted)
    if isinstance(drawn, NoRoom):
        return drawn
    key = (payer.run_id, day, transfer)
    rest = await connection.fetchval(_DRAW_AND_HOLD, payer.tenant, *_columns(own), *drawn.amount, *key, *amount)
    return Held(rest, drawn.used_percent)


async def settle(
    connection: Connection, payer: Payer, transfer: str, day: date, held: Amount, spent: Amount, *, place: str = "held"
) -> Amount:
    """Turn what was held into what it has cost; the difference is kept for the next call. Returns what it cost beyond the hold.

    `place` is `unknown` when the request had been lost sight of.
    """
    within = Amount(min(held.micros, spent.micros), min(held.tokens, spent.tokens))
    beyond = spent.minus(within)
    amounts = (*held, *within, *beyond)
    await connection.execute(_SETTLE, payer.tenant, payer.run_id, day, transfer, place, *amounts, "settle")
    if beyond != NOTHING:
        await notifications.write(
            connection, payer.tenant, f"overrun {payer.run_id} {transfer}", "overrun",
            f"{payer.run_id}: a provider billed above the most that a call could cost",
            f"{beyond.micros} µ$ and {beyond.tokens} tokens above the hold of call {transfer}; they are booked to overrun",
        )  # fmt: skip
    return beyond


async def release(connection: Connection, payer: Payer, transfer: str, day: date, held: Amount, *, place: str = "held") -> None:
    """The request has cost nothing: what was held for it is kept for the next call."""
    amounts = (*held, *NOTHING, *NOTHING)
    await connection.execute(_SETTLE, payer.tenant, payer.run_id, day, transfer, place, *amounts, "release")


async def lose(connection: Connection, payer: Payer, transfer: str, day: date, held: Amount) -> None:
    """Nobody knows what became of the request: its money stays held, under a name of its own."""
    await connection.execute(_LOSE, payer.tenant, payer.run_id, day, transfer, *held)


async def give_back(connection: Connection, tenant: TenantId, run: RunId, reason: str) -> Amount:
    """Return to its accounts what a run has drawn and does not use. How much that was."""
    rows = await connection.fetch(_RESTS, tenant, run)
    if not rows:
        return NOTHING
    rests = {row["day"]: Amount(row["rest_micros"], row["rest_tokens"]) for row in rows}
    user, agent = rows[0]["user_id"], rows[0]["agent"]
    for day, rest in rests.items():
        await connection.execute(_RETURNED, tenant, run, day, reason, *rest)
    await _subtract(connection, tenant, {day: accounts.windows(user, agent, day) for day in rests}, rests)
    async with as_tenant(connection, SYSTEM_TENANT, tenant):
        above = {day: accounts.of_periods(Scope.ALL, "", day) for day in rests}
        await _subtract(connection, SYSTEM_TENANT, above, rests)
    return Amount(sum(rest.micros for rest in rests.values()), sum(rest.tokens for rest in rests.values()))


async def _subtract(
    connection: Connection, tenant: TenantId, names: Mapping[date, Sequence[AccountName]], rests: Mapping[date, Amount]
) -> None:
    """Days share their month's accounts: all are locked in the one order before the first is changed."""
    await connection.fetch(_LOCK, tenant, *_columns(sorted({name for day in names for name in names[day]})))
    for day, rest in rests.items():
        await _add(connection, tenant, names[day], rest.times(-1))


async def _draw(
    connection: Connection,
    tenant: TenantId,
    own: Sequence[AccountName],
    above: Sequence[AccountName],
    run_drawn: Amount,
    needed: Amount,
    wanted: Amount,
) -> Draw | NoRoom:
    """Decide, with every account locked, and draw from those above all tenants; the tenant's own are left to the caller."""
    found = await _locked(connection, tenant, own, run_drawn)
    async with as_tenant(connection, SYSTEM_TENANT, tenant):
        found += await _locked(connection, SYSTEM_TENANT, above, run_drawn)
        verdict = accounts.draw(found, needed, wanted)
        for crossing in (one for one in verdict.crossings if one.account.name.scope is Scope.ALL):
            await notifications.write_crossing(connection, SYSTEM_TENANT, crossing)
        if isinstance(verdict, Draw):
            await _add(connection, SYSTEM_TENANT, above, verdict.amount)
    for crossing in (one for one in verdict.crossings if one.account.name.scope is not Scope.ALL):
        await notifications.write_crossing(connection, tenant, crossing)
    return verdict


async def _locked(connection: Connection, tenant: TenantId, names: Sequence[AccountName], run_drawn: Amount) -> list[Account]:
    """Accounts of one tenant as they stand, locked until the transaction ends, and the run's own share beside each."""
    columns = _columns(names)
    rows = await connection.fetch(_LOCK, tenant, *columns)
    if not rows:  # the first draw of the day, or of the month
        await connection.execute(_OPEN_ACCOUNTS, tenant, *columns)
        await _know(connection, tenant)
        rows = await connection.fetch(_LOCK, tenant, *columns)
    found = []
    for row in rows:
        name = AccountName(Scope(row["scope"]), row["name"], accounts.Period(row["period"]), row["starts"])
        found.append(Account(name, Amount(row["drawn_micros"], row["drawn_tokens"]), row["micros"], row["tokens"]))
        if row["run_micros"] is not None or row["run_tokens"] is not None:
            of_run = name._replace(period=accounts.Period.RUN)
            found.append(Account(of_run, run_drawn, row["run_micros"], row["run_tokens"]))
    return found


async def _know(connection: Connection, tenant: TenantId) -> None:
    if tenant != SYSTEM_TENANT:
        async with as_tenant(connection, SYSTEM_TENANT, tenant):
            await connection.execute(
                "insert into known_tenant (tenant, name) values ($1, $2) on conflict do nothing", SYSTEM_TENANT, tenant
            )


async def _add(connection: Connection, tenant: TenantId, names: Sequence[AccountName], amount: Amount) -> None:
    await connection.execute(_ADD, tenant, *_columns(names), *amount)


def _columns(names: Sequence[AccountName]) -> tuple[list[str], list[str], list[str], list[date]]:
    """As arrays for `unnest`."""
    return [n.scope for n in names], [n.name for n in names], [n.period for n in names], [n.starts for n in names]
