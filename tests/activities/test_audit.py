"""Can anybody change, remove or cut off a part of the audit log without it being found?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from activities.audit import append, verify
from activities.postgres import Connection, Database, _prepare
from durable_agents.domain.audit import entry_hash
from durable_agents.domain.identifiers import RunId, TenantId
from tests.support.world import TestDatabase

ACME, RIVAL, RUN = TenantId("acme"), TenantId("rival"), RunId("run:acme:k")


@pytest.fixture
async def opened(database: TestDatabase) -> AsyncIterator[Database]:
    """The database as a worker has it."""
    found = await Database.open(database.app)
    yield found
    await found.close()


async def write(database: Database, number: int, tenant: TenantId = ACME) -> None:
    """One entry, in a transaction of its own."""
    async with database.transaction(tenant) as connection:
        await append(connection, tenant, RUN, "event", {"number": number, "text": f"entry {number}"})


async def judged(database: Database, tenant: TenantId = ACME) -> str | None:
    """What `verify` says of a tenant's log."""
    async with database.transaction(tenant) as connection:
        return await verify(connection, tenant)


async def test_two_hundred_appends_at_once_make_one_chain(database: TestDatabase) -> None:
    """Two appends that follow the same predecessor would be two histories, each true by itself."""
    pools = [await Database.open(database.app, max_size=8) for _ in range(4)]
    try:
        await asyncio.gather(*(write(pools[number % 4], number, RIVAL if number % 10 == 0 else ACME) for number in range(200)))
        for tenant, entries in ((ACME, 180), (RIVAL, 20)):
            assert await judged(pools[0], tenant) is None
            async with pools[0].transaction(tenant) as connection:
                rows = await connection.fetch("select sequence, previous, hash, body from audit_entry order by sequence")
            assert [row["sequence"] for row in rows] == list(range(1, entries + 1))
            assert [row["previous"] for row in rows[1:]] == [row["hash"] for row in rows[:-1]]
            assert len({row["body"]["number"] for row in rows}) == entries
    finally:
        await asyncio.gather(*(pool.close() for pool in pools))


async def test_an_append_that_is_rolled_back_leaves_no_gap(opened: Database) -> None:
    """The entry stands or falls with what it records; a gap would look like a removed entry."""
    await write(opened, 1)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await _fail_after_appending(opened)
    await write(opened, 2)
    assert await judged(opened) is None


async def _fail_after_appending(database: Database) -> None:
    async with database.transaction(ACME) as connection:
        await append(connection, ACME, RUN, "event", {})
        await connection.execute("select 1/0")


async def test_a_tenant_without_a_log_has_nothing_wrong(opened: Database) -> None:
    """The check runs over all tenants, the new ones too."""
    assert await judged(opened) is None


TAMPERING = {
    "the body": """update audit_entry set body = '{"number": 5, "text": "entry 6"}' where sequence = 5""",
    "the body, by one field": """update audit_entry set body = body || '{"more": 1}' where sequence = 5""",
    "the event": "update audit_entry set event = 'other' where sequence = 5",
    "the run": "update audit_entry set run_id = 'run:acme:other' where sequence = 5",
    "the time": "update audit_entry set at_micros = at_micros + 1 where sequence = 5",
    "the hash": "update audit_entry set hash = md5('x') where sequence = 5",
    "the predecessor": "update audit_entry set previous = md5('x') where sequence = 5",
    "the number": "update audit_entry set sequence = 500 where sequence = 5",
    "the tenant": "update audit_entry set tenant = 'rival' where sequence = 5",
    "the first entry": "update audit_entry set event = 'other' where sequence = 1",
    "the last entry": "update audit_entry set event = 'other' where sequence = 10",
    "two bodies swapped": "update audit_entry set body = o.body from audit_entry o"
    " where audit_entry.sequence in (4, 5) and o.sequence = 9 - audit_entry.sequence",
    "a row in the middle removed": "delete from audit_entry where sequence = 5",
    "a row removed, the rest renumbered": "delete from audit_entry where sequence = 5;"
    " update audit_entry set sequence = -sequence where sequence > 5;"
    " update audit_entry set sequence = -sequence - 1 where sequence < 0",
    "the first row removed": "delete from audit_entry where sequence = 1",
    "the tail cut off": "delete from audit_entry where sequence > 8",
    "the last row cut off": "delete from audit_entry where sequence = 10",
    "everything cut off": "delete from audit_entry",
    "the tail and the head removed": "delete from audit_entry where sequence > 8; delete from audit_head",
    "the head removed": "delete from audit_head",
    "the head turned back": "update audit_head set sequence = 9",
    "the head's hash": "update audit_head set hash = md5('x')",
    "a row added": "insert into audit_entry select tenant, 11, hash, md5('x'), at_micros, run_id, event, body"
    " from audit_entry where sequence = 10",
}


@asynccontextmanager
async def tampered(pool: "asyncpg.Pool[asyncpg.Record]", commands: str) -> AsyncIterator[Connection]:
    """The log after an administrator has changed it past all privileges and checks; undone at the end."""
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("alter table audit_entry drop constraint audit_entry_sequence_check, disable trigger user")
        await connection.execute("alter table audit_head disable trigger user")
        for command in commands.split("; "):
            assert not (await connection.execute(command)).endswith(" 0"), command
        yield connection
        await transaction.rollback()


async def test_every_way_to_tamper_is_found(opened: Database, database: TestDatabase) -> None:
    """Any field, a row in the middle, the tail: by somebody with every right there is."""
    for number in range(1, 11):
        await write(opened, number)
    assert await judged(opened) is None
    pool = await asyncpg.create_pool(database.admin, min_size=1, max_size=1, init=_prepare)
    try:
        for name, commands in TAMPERING.items():
            async with tampered(pool, commands) as connection:
                found = await verify(connection, ACME)
            assert found, f"{name} was changed and not found"
            assert "\n" not in found
    finally:
        await pool.close()
    assert await judged(opened) is None


async def test_a_rehashed_tail_does_not_meet_the_head(opened: Database, database: TestDatabase) -> None:
    """Whoever changes an entry and hashes everything after it anew must change the head row as well."""
    for number in range(1, 4):
        await write(opened, number)
    connection = await asyncpg.connect(database.admin)
    try:
        await _prepare(connection)
        previous = "0" * 64
        for row in await connection.fetch("select * from audit_entry order by sequence"):
            body = row["body"] if row["sequence"] > 1 else {"number": 7}
            hashed = entry_hash(
                tenant=ACME,
                sequence=row["sequence"],
                previous=previous,
                at_micros=row["at_micros"],
                run=RUN,
                event="event",
                body=body,
            )
            update = "update audit_entry set body = $2, previous = $3, hash = $4 where sequence = $1"
            await connection.execute(update, row["sequence"], body, previous, hashed)
            previous = hashed
    finally:
        await connection.close()
    found = await judged(opened)
    assert found is not None
    assert found.startswith(f"entry 3: the log ends at entry 3 ({previous[:12]}), its head says 3 (")
