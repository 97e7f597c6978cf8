"""Do processes that spend from the same accounts at the same time ever spend more than there is, or wait for each other for ever?

`LEDGER_CALLS=1000` makes as many concurrent calls as the ceiling was promised for.
"""

import asyncio
import itertools
import os
from datetime import date, timedelta

import asyncpg
from asyncpg import Record

from durable_agents.domain.accounts import Period, Scope
from tests.support.ledgers import TODAY, Books, open_books
from tests.support.spender import Order, Seen, spend
from tests.support.waiting import eventually
from tests.support.world import TestDatabase

PROCESSES, CALLS = 4, int(os.environ.get("LEDGER_CALLS", "300"))
TEN_CENTS, FIVE_DOLLARS = 100_000, 5_000_000
OVER = """
select a.tenant, a.scope, a.name, a.period from account a cross join lateral (
    select micros, tokens from account_limit l
    where l.tenant = a.tenant and l.scope = a.scope and l.period = a.period and l.name in (a.name, '*')
    order by l.name = '*' limit 1) l
where a.drawn_micros > l.micros or a.drawn_tokens > l.tokens
"""
OWED = "select coalesce(sum(held_micros + unknown_micros + spent_micros), 0)::bigint from envelope"
DEADLOCKS = "select deadlocks from pg_stat_database where datname = current_database()"


async def _spend(books: Books, database: TestDatabase, runs: list[list[str]], calls: int, days: list[date], least: int) -> Seen:
    """Every process has its share of the runs; meanwhile no commit may leave an account beyond its limit."""
    for tenant, run, user, agent in runs:
        await books.open_run(run, tenant=tenant, user=user, agent=agent)
    said = [day.isoformat() for day in days]
    orders = [
        Order(database.app, "spend", runs[n::PROCESSES], calls, 25, [TEN_CENTS, 1000], least, said, seed=n)
        for n in range(PROCESSES)
    ]
    admin = await asyncpg.connect(database.admin)
    try:
        seen = await spend(orders, _watch(admin))
        assert await admin.fetch(OVER) == []
        return seen
    finally:
        await admin.close()


async def _watch(admin: "asyncpg.Connection[Record]") -> None:
    """Look at every account again and again, for as long as it is let."""

    async def look() -> None:
        over = await admin.fetch(OVER)
        assert over == [], over

    async with asyncio.timeout(100):
        await eventually(look, within=100)


async def test_concurrent_calls_of_ten_cents_against_five_dollars_stop_at_five_dollars(database: TestDatabase) -> None:
    """Check-then-act overshoots by 104 % at 60 concurrent calls; a ceiling that gives way under load is none."""
    async with open_books(database.app) as books:
        await books.limit(Scope.TENANT, Period.DAY, micros=FIVE_DOLLARS)
        runs = [["acme", f"r{n}", f"u{n % 5}", "a"] for n in range(CALLS // 5)]
        seen = await _spend(books, database, runs, 5, [TODAY], least=100)
        assert seen.errors == {}
        assert seen.held + seen.refused == len(runs) * 5
        assert 45 <= seen.held <= 50
        assert (await books.drawn(Scope.TENANT, Period.DAY)).micros == seen.held * TEN_CENTS
        assert await books.differences() == []


async def test_four_levels_of_limits_in_random_order_neither_give_way_nor_deadlock(database: TestDatabase) -> None:
    """Runs share users, agents, tenants and everything, each with other neighbours; on days that nobody has drawn on before."""
    tenants, users, agents = ("acme", "rival"), ("u1", "u2", "u3"), ("a1", "a2", "a3")
    days = [TODAY + timedelta(days=n) for n in (0, 1, 11, 12)]  # two months
    async with open_books(database.app) as books:
        for tenant in tenants:
            for user, agent in zip(users, agents, strict=True):
                await books.limit(Scope.USER, Period.DAY, micros=8 * TEN_CENTS, name=user, tenant=tenant)
                await books.limit(Scope.AGENT, Period.MONTH, micros=25 * TEN_CENTS, name=agent, tenant=tenant)
            await books.limit(Scope.USER, Period.MONTH, tokens=30_000, name="*", tenant=tenant)
            await books.limit(Scope.TENANT, Period.DAY, micros=14 * TEN_CENTS, tenant=tenant)
        await books.limit(Scope.ALL, Period.DAY, micros=24 * TEN_CENTS)
        await books.limit(Scope.ALL, Period.MONTH, micros=4 * FIVE_DOLLARS)
        names = itertools.cycle(itertools.product(tenants, users, agents))
        runs = [[tenant, f"r{n}", user, agent] for n, (tenant, user, agent) in zip(range(CALLS // 5), names, strict=False)]
        seen = await _spend(books, database, runs, 5, days, least=30)
        assert seen.errors == {}
        assert seen.held + seen.refused == len(runs) * 5
        assert seen.held >= 45
        assert seen.refused > 0
        for tenant in tenants:
            assert await books.differences(tenant) == []
    admin = await asyncpg.connect(database.admin)
    assert await admin.fetchval(DEADLOCKS) == 0
    await admin.close()
