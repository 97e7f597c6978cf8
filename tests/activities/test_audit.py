"""Can anybody change, remove or cut off a part of the audit log without it being found?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
from pydantic import JsonValue

from activities.account_limits import known_tenants
from activities.audit import InexactBodyError, append, append_notes, entries, head_of, verify
from activities.postgres import Connection, Database, _prepare
from durable_agents.domain.audit import Head, Note, entry_hash
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT
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


async def test_a_body_with_a_float_is_refused_where_it_is_written(opened: Database) -> None:
    """A float is not always the same number when it is read again: an honest entry would look changed."""
    bodies: tuple[dict[str, JsonValue], ...] = ({"cost": 0.5}, {"a": [1, {"b": 1.0}]}, {"x": float("nan")})
    for body in bodies:
        with pytest.raises(InexactBodyError, match=r"event holds a float at body\.[acx].*: write integers") as refused:
            await _append(opened, body)
        assert "\n" not in str(refused.value)
    await _append(opened, {"cost_micros": 2**60, "flag": True, "none": None})
    assert await judged(opened) is None


async def _append(database: Database, body: dict[str, JsonValue]) -> None:
    async with database.transaction(ACME) as connection:
        await append(connection, ACME, RUN, "event", body)


async def test_every_tenant_with_a_log_is_known_to_the_verifier(opened: Database) -> None:
    """Row-level security hides tenants; one that never drew money has a log all the same."""
    await write(opened, 1)
    await write(opened, 1, RIVAL)
    await write(opened, 1, SYSTEM_TENANT)
    assert await known_tenants(opened) == [ACME, RIVAL]


_ENTRY = "insert into audit_entry select tenant, {number}, {previous}, md5('x'), 1, 'r', 'e', '{{}}' from audit_head"
UNRULY = {
    "turn the head back": "update audit_head set sequence = 2, hash = (select hash from audit_entry where sequence = 2)",
    "turn the head forward": "update audit_head set sequence = 4, hash = md5('x')",
    "change the head's hash": "update audit_head set hash = md5('x')",
    "follow an older entry": _ENTRY.format(number=4, previous="(select hash from audit_entry where sequence = 2)"),
    "follow nothing": _ENTRY.format(number=4, previous="md5('y')"),
    "leave a gap": _ENTRY.format(number=5, previous="hash"),
    "stand before the first": _ENTRY.format(number=0, previous="repeat('0', 64)"),
    "other: begin in the middle": "insert into audit_head values ('other', 7, repeat('0', 64))",
    "other: begin with a hash": "insert into audit_head values ('other', 0, md5('x'))",
    "other: have no head": "insert into audit_entry values ('other', 1, repeat('0', 64), md5('x'), 1, 'r', 'e', '{}')",
}


async def test_the_database_lets_its_writer_only_append(opened: Database) -> None:
    """Who gets hold of a worker's connection can say untrue things from now on, and not one true thing less."""
    for number in range(3):
        await write(opened, number)
    for name, command in UNRULY.items():
        tenant = TenantId("other") if name.startswith("other") else ACME
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await _execute(opened, tenant, command)
    assert await judged(opened) is None


async def _execute(database: Database, tenant: TenantId, command: str) -> None:
    async with database.transaction(tenant) as connection:
        await connection.execute(command)


async def test_what_is_appended_while_a_log_is_verified_is_no_tampering(opened: Database) -> None:
    """Workers do not stop for an auditor; the check looks at one moment."""
    await write(opened, 1)
    async with opened.transaction(ACME, snapshot=True) as connection:
        seen = [batch async for batch in entries(connection, ACME)]
        await write(opened, 2)
        assert await verify(connection, ACME) is None
        assert await head_of(connection, ACME) == Head(1, seen[0][0][2])
    assert await judged(opened) is None


async def test_a_note_is_written_once_however_often_it_is_brought(opened: Database) -> None:
    """The activity that brings it is tried again, and two calls of a turn may bring it at once; a reset run counts anew."""
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    notes = [Note(number=number, at=now, event="budget_raised", facts={"by": "ann"}) for number in (1, 2)]

    async def bring(some: list[Note]) -> None:
        async with opened.transaction(ACME) as connection:
            await append_notes(connection, ACME, RUN, some)

    await write(opened, 0)
    await asyncio.gather(*(bring(notes) for _ in range(4)), bring(notes[:1]))
    again = notes[0].model_copy(update={"at": now + timedelta(seconds=1)})
    await bring([*notes, again])
    async with opened.transaction(ACME) as connection:
        rows = await connection.fetch("select body from audit_entry where event = 'budget_raised' order by sequence")
    assert [(row["body"]["note"], row["body"]["by"]) for row in rows] == [(1, "ann"), (2, "ann"), (1, "ann")]
    assert await judged(opened) is None


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
