"""How does a test get an audit log of any length, as workers leave it, and how does somebody with every right alter it?"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice

import asyncpg
from pydantic import JsonValue

from activities.postgres import OwnConnection, _prepare
from durable_agents.domain.audit import GENESIS, Entry, entry_hash
from tests.support.world import TestDatabase

_INSERT = """
insert into audit_entry
select $1, * from unnest($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[], $8::jsonb[])
"""
NOON = 1_795_176_000_000_000


def chain(tenant: str, entries: Iterator[tuple[str, str, dict[str, JsonValue]]]) -> Iterator[Entry]:
    """Runs, events and bodies as the entries of a log that verifies."""
    previous = str(GENESIS)
    for sequence, (run, event, body) in enumerate(entries, 1):
        at = NOON + sequence * 1_000
        hashed = entry_hash(
            tenant=tenant, sequence=sequence, previous=previous, at_micros=at, run=run, event=event, body=body
        )  # fmt: skip
        yield Entry(sequence, previous, hashed, at, run, event, body)
        previous = hashed


def honest(tenant: str, count: int) -> Iterator[Entry]:
    """A log with the events and bodies that runs write, in which text is not only ASCII."""
    return chain(tenant, (_happening(tenant, number) for number in range(count)))


def _happening(tenant: str, number: int) -> tuple[str, str, dict[str, JsonValue]]:
    run, digest = f"run:{tenant}:order-{number // 8:06}", f"{number * 7919:064x}"
    bodies: list[tuple[str, dict[str, JsonValue]]] = [
        ("run_admitted", {"agent": "refunds", "version": digest, "user": "zoë@example.com", "request": digest}),
        (
            "model_called",
            {"call": number, "model": "claude-haiku-5-5", "cost_micros": number * 31, "tokens": {"in": 5, "out": 1}},
        ),
        ("tool_dispatched", {"path": "1.0", "tool": "issue_refund", "key": digest, "arguments": digest, "approval": None}),
        ("tool_settled", {"path": "1.0", "tool": "issue_refund", "result": "ok", "rule": "", "key": digest}),
    ]
    event, body = bodies[number % len(bodies)]
    return run, event, body


@asynccontextmanager
async def almighty(database: TestDatabase) -> AsyncIterator[OwnConnection]:
    """Somebody who owns the database, and has switched off everything in it that could stop them."""
    connection = await asyncpg.connect(database.admin)
    try:
        await _prepare(connection)
        await connection.execute("set session_replication_role = replica")  # no trigger fires
        yield connection
    finally:
        await connection.close()


async def write_log(connection: OwnConnection, tenant: str, entries: Iterator[Entry]) -> None:
    """Put a log in, head and all; what the tenant had is gone."""
    await connection.execute("delete from audit_entry where tenant = $1", tenant)
    await connection.execute("delete from audit_head where tenant = $1", tenant)
    last: Entry | None = None
    while batch := list(islice(entries, 5_000)):
        columns = [list(column) for column in zip(*batch, strict=True)]
        await connection.execute(_INSERT, tenant, *columns)
        last = batch[-1]
    if last is not None:
        await connection.execute("insert into audit_head values ($1, $2, $3)", tenant, last.sequence, last.hash)
    await connection.execute("insert into known_tenant values ('*', $1) on conflict do nothing", tenant)
