"""Who did what, and can anybody have changed the record since?

One hash chain per tenant. The head row is locked for each append: reading the newest entry instead would let two appends
follow the same predecessor. The database moves the head itself, with the entry, and refuses an entry that does not follow it.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from activities.postgres import Connection, Database, as_tenant
from durable_agents.domain.audit import (
    EMPTY,
    GENESIS,
    Anchor,
    Chain,
    Entry,
    Head,
    Note,
    entry_hash,
    inexact,
    micros_of,
)
from durable_agents.domain.identifiers import RunId, TenantId
from durable_agents.domain.provider_gates import SYSTEM_TENANT

BATCH = 2_000
"""Entries that are read at once: a verifier's memory is theirs, however long the log."""
_WRITTEN = """
select (body ->> 'note')::bigint, (body ->> 'received_at_micros')::bigint from audit_entry
where tenant = $1 and run_id = $2 and body ? 'note'
"""
_AFTER = """
select sequence, previous, hash, at_micros, run_id, event, body from audit_entry
where tenant = $1 and sequence > $2 order by sequence
"""
_NEWEST = """
select sequence, previous, hash, at_micros, run_id, event, body from audit_entry
where tenant = $1 and ($2::text is null or run_id = $2) and (cardinality($3::text[]) = 0 or event = any($3))
and ($4::bigint is null or at_micros >= $4) and ($5::bigint is null or at_micros < $5)
order by sequence desc limit $6
"""


class InexactBodyError(ValueError):
    """An entry's body holds a number that is no integer. `str()` says where."""


async def append(connection: Connection, tenant: TenantId, run: RunId, event: str, body: dict[str, JsonValue]) -> None:
    """Append one entry, in the transaction of what it records. Call it last: it locks the tenant's chain until commit.

    Raises:
        InexactBodyError: the body holds a float.
    """
    if (place := inexact(body)) is not None:
        raise InexactBodyError(f"the audit entry {event} holds a float at {place}: write integers (micro-dollars, ms) or text")
    head = await _locked(connection, tenant) or await _begun(connection, tenant)
    sequence, now = head.sequence + 1, time.time_ns() // 1000
    hashed = entry_hash(
        tenant=tenant, sequence=sequence, previous=head.hash, at_micros=now, run=run, event=event, body=body
    )  # fmt: skip
    await connection.execute(
        "insert into audit_entry values ($1, $2, $3, $4, $5, $6, $7, $8)",
        tenant, sequence, head.hash, hashed, now, run, event, body,
    )  # fmt: skip


async def append_notes(connection: Connection, tenant: TenantId, run: RunId, notes: Sequence[Note]) -> None:
    """Append what a run has noted, each note once however often it is brought."""
    if not notes:
        return
    await _locked(connection, tenant)  # whoever else brings the same notes has written them, or waits
    written = {tuple(row) for row in await connection.fetch(_WRITTEN, tenant, run)}
    for note in notes:
        if (note.number, micros_of(note.at)) not in written:
            await append(connection, tenant, run, note.event, note.body())


async def head_of(connection: Connection, tenant: TenantId) -> Head | None:
    """What the head row says; None: there is none."""
    row = await connection.fetchrow("select sequence, hash from audit_head where tenant = $1", tenant)
    return None if row is None else Head(*row)


async def entries(connection: Connection, tenant: TenantId, *, after: int = 0) -> AsyncIterator[list[Entry]]:
    """A tenant's log in batches, from the entry behind `after` on."""
    cursor = await connection.cursor(_AFTER, tenant, after)
    while batch := await cursor.fetch(BATCH):
        yield batch  # type: ignore[misc]  # a record is a tuple of the fields of an Entry


async def examine(
    connection: Connection,
    tenant: TenantId,
    anchors: Iterable[Anchor] = (),
    *,
    start: Head = EMPTY,
    progress: Callable[[int], None] = lambda _: None,
) -> Chain:
    """Check a tenant's chain up to the head row. In a snapshot: else what is appended meanwhile looks like tampering.

    It begins behind `start`, an entry that is known to be genuine; `progress` is told how far it is.
    """
    chain = Chain(tenant, anchors, start=start)
    async for batch in entries(connection, tenant, after=start.sequence):
        chain.follow(batch)
        progress(chain.head.sequence)
    chain.end(await head_of(connection, tenant))
    return chain


async def verify(connection: Connection, tenant: TenantId) -> str | None:
    """Check a tenant's whole chain, its tail against the head row included. The first thing that is wrong with it, or None."""
    chain = await examine(connection, tenant)
    return f"entry {chain.problems[0].sequence}: {chain.problems[0].why}" if chain.problems else None


async def anchorable(database: Database, tenant: TenantId, before: Anchor | None) -> Chain | Head | None:
    """What a tenant's next anchor says; None: nothing was appended since the last; a Chain: what was is no continuation of it."""
    async with database.transaction(tenant, snapshot=True) as connection:
        head = await head_of(connection, tenant)
        if before is None:
            return head if head is not None and head.sequence else None
        anchored = await connection.fetchval(
            "select hash from audit_entry where tenant = $1 and sequence = $2", tenant, before.sequence
        )
        if head == (before.sequence, before.head) and anchored == before.head:
            return None
        start = Head(before.sequence, str(anchored)) if anchored is not None else EMPTY
        chain = await examine(connection, tenant, [before], start=start)
        return chain if chain.problems else chain.head


@dataclass(frozen=True)
class Wanted:
    """Which entries are looked for; None or nothing: all."""

    run: str | None = None
    events: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


async def newest(connection: Connection, tenant: TenantId, wanted: Wanted, limit: int) -> list[Entry]:
    """The newest entries that are wanted, oldest first."""
    since, until = (when and micros_of(when) for when in (wanted.since, wanted.until))
    rows = await connection.fetch(
        _NEWEST, tenant, wanted.run, list(wanted.events), since, until, limit,
    )  # fmt: skip
    return [Entry(*row) for row in reversed(rows)]


async def _locked(connection: Connection, tenant: TenantId) -> Head | None:
    row = await connection.fetchrow("select sequence, hash from audit_head where tenant = $1 for update", tenant)
    return None if row is None else Head(*row)


async def _begun(connection: Connection, tenant: TenantId) -> Head:
    """The head of a log that begins. First the tenant is made known: who holds a head must not wait for anything else."""
    if tenant != SYSTEM_TENANT:
        async with as_tenant(connection, SYSTEM_TENANT, tenant):
            await connection.execute("insert into known_tenant values ($1, $2) on conflict do nothing", SYSTEM_TENANT, tenant)
    await connection.execute("insert into audit_head values ($1, 0, $2) on conflict do nothing", tenant, GENESIS)
    head = await _locked(connection, tenant)
    assert head is not None
    return head
