"""How many requests to models can all workers together hold money for in a second, and what does a plain UPDATE reach?

`python benchmarks/ledger_speed.py [--processes 2] [--at-once 8] [--runs 250] [--calls 8]` runs processes of its own against a
PostgreSQL with its normal, durable settings. A hold is the whole transaction: begin, hold, journal row, commit. Exit code 1 if an
aim was missed.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncpg

from starter.embedded.servers import EmbeddedServers
from tests.support.spender import Order, Seen, spend
from tests.support.world import TestDatabase, fresh_database, prepare_template

AMOUNT = [1000, 500]
AIMS = {1: 200.0, 20: 1000.0}
"""Holds per second, by how many tenants share the load."""
MADE = """
insert into run (tenant, run_id, first_execution, request_digest, agent, agent_version, user_id, terms)
select * from unnest($1::text[], $2::text[]) as r (tenant, run_id), (values ('first', 'd', 'a', 'v', 'u', '{}'::jsonb)) v
"""
LIMITED = """
insert into account_limit (tenant, scope, name, period, micros, changed_by)
select t, s, case s when 'user' then 'u' when 'agent' then 'a' else '' end, p, 10^12, 'bench'
from unnest($1::text[]) t, unnest($2::text[]) s, unnest(array['day', 'month']) p
"""
EMPTIED = "truncate run, account, account_limit, envelope, ledger_entry, known_tenant, notification cascade"


def tenants_of(count: int) -> list[str]:
    return [f"t{n:02}" for n in range(count)]


def orders(database: str, work: str, tenants: list[str], given: argparse.Namespace, calls: int) -> list[Order]:
    """Every process has runs of every tenant."""
    runs = [[tenants[n % len(tenants)], f"r{n:05}", "u", "a"] for n in range(given.runs * given.calls // calls)]
    share = len(runs) // given.processes
    return [
        Order(database, work, runs[n * share : (n + 1) * share], calls, given.at_once, AMOUNT) for n in range(given.processes)
    ]


async def measure(database: TestDatabase, work: str, tenants: list[str], given: argparse.Namespace, calls: int) -> float:
    """Holds per second on an empty ledger in which every account has a limit, far away."""
    todo = orders(database.app, work, tenants, given, calls)
    admin = await asyncpg.connect(database.admin)
    try:
        await admin.execute(EMPTIED)
        runs = [run for order in todo for run in order.runs]
        await admin.execute(MADE, [run[0] for run in runs], [run[1] for run in runs])
        await admin.execute(LIMITED, tenants, ["user", "agent", "tenant"])
        await admin.execute(LIMITED, ["*"], ["all"])
        await admin.execute("create table if not exists floor (account text primary key, used bigint, most bigint)")
        await admin.execute("truncate floor; grant select, update on floor to durable_agents_app")
        await admin.execute("insert into floor select t, 0, 10^12 from unnest($1::text[]) t", tenants)
        await admin.execute("vacuum analyze")
        seen: Seen = await spend(todo)
    finally:
        await admin.close()
    expected = sum(len(order.runs) * order.calls for order in todo)
    assert (seen.held, seen.refused, seen.errors) == (expected, 0, {}), seen
    return seen.held / seen.seconds


async def main(given: argparse.Namespace) -> int:
    """Print ratios first; 1 if an aim was missed."""
    good = True
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServers(Path(folder), headless=True) as endpoints:
            assert endpoints.urls is not None
            await prepare_template(endpoints.urls)
            async with fresh_database(endpoints.urls) as database:
                for count, aim in AIMS.items():
                    floor = await measure(database, "floor", tenants_of(count), given, given.calls)
                    speed = await measure(database, "hold", tenants_of(count), given, given.calls)
                    first = await measure(database, "hold", tenants_of(count), given, 1)
                    good = good and speed >= aim
                    print(
                        f"{count:2} tenant{'s' if count > 1 else ''}: a hold is {floor / speed:.1f} plain UPDATEs"
                        f" ({floor / first:.1f} when each is a run's first and draws);"
                        f" {speed:,.0f} holds/s (aim: {aim:,.0f}), {first:,.0f} first ones/s, {floor:,.0f} UPDATEs/s",
                        flush=True,
                    )
    print("both aims met" if good else "AN AIM WAS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=8, help="connections of each process")
    parser.add_argument("--runs", type=int, default=250)
    parser.add_argument("--calls", type=int, default=8, help="of each run")
    sys.exit(asyncio.run(main(parser.parse_args())))
